"""The formats of mini- and tiered-ImageNet, all made of the same real images: a part of Tiny-ImageNet.

Run it with `MAML_JAX_TINY_IMAGENET=FOLDER pytest -m slow -n 0 tests/data/test_tiny_imagenet.py`. The folder holds
`tiny_imagenet.zip` of `tiny_imagenet/<wnid>/*.JPEG`, some of them grey, and `mini_ravi_{train,val,test}.txt` and
`tiered_{train,val,test}.txt`, the WordNet numbers of its classes by split.
"""

import dataclasses
import functools
import io
import os
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import mini_imagenet, store, tiered_imagenet
from tests.data.test_mini_imagenet import LONG, PICKLES
from tests.data.test_safe_pickle import python2_pickle

SPLITS = ("train", "val", "test")
FOLDER = os.environ.get("MAML_JAX_TINY_IMAGENET")
SIDE = 84


@dataclasses.dataclass
class Images:
    """Of each split the sorted classes, and of each class the JPEG files and what Pillow makes of them."""

    classes: dict[str, list[str]]
    jpegs: dict[str, list[bytes]]

    def __post_init__(self):
        with ThreadPoolExecutor() as pool:
            decoded = {c: list(pool.map(decode, files)) for c, files in self.jpegs.items()}
            self.pixels = {c: np.stack(list(pool.map(enlarge, images))) for c, images in decoded.items()}
        self.small = {c: np.stack(images) for c, images in decoded.items()}

    def mixed(self, split, pixels=None):
        """A split as the pickles have it, classes by turns: images, and each one's class, numbered as sorted."""
        pixels = pixels or self.pixels
        counts = [len(pixels[c]) for c in self.classes[split]]
        labels = np.concatenate([np.full(n, i) for i, n in enumerate(counts)])
        turns = np.concatenate([np.arange(n) for n in counts])
        order = np.lexsort((labels, turns))
        return np.concatenate([pixels[c] for c in self.classes[split]])[order], labels[order].tolist()


def decode(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def enlarge(image):
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=1)
    return content.getvalue()


@functools.cache
def images(lists):
    classes = {split: sorted(Path(FOLDER, f"{lists}_{split}.txt").read_text().split()) for split in SPLITS}
    with zipfile.ZipFile(Path(FOLDER, "tiny_imagenet.zip")) as archive:
        members = {c: [] for names in classes.values() for c in names}
        for member in sorted(archive.namelist()):
            members.get(member.split("/")[1], []).append(member)
        return Images(classes, {c: list(map(archive.read, files)) for c, files in members.items()})


def write_pickles(root, images, dump=pickle.dumps, prefix="", pixels=None):
    for split, file in PICKLES.items():
        data, labels = images.mixed(split, pixels)
        names = {name: label for label, name in enumerate(images.classes[split])}
        (root / f"{prefix}{file}").write_bytes(dump({"data": data, "labels": labels, "catname2label": names}))


def write_files(root, images, folder_of, encode=None):
    """Writes each image into `folder_of(split, class)`: as it came, or the enlarged one encoded anew."""
    for split, classes in images.classes.items():
        for c in classes:
            folder = root / folder_of(split, c)
            folder.mkdir(parents=True, exist_ok=True)
            files = images.jpegs[c] if encode is None else map(encode, images.pixels[c])
            for i, content in enumerate(files):
                (folder / f"{c}{i:05}.{'jpg' if encode is None else 'png'}").write_bytes(content)


def write_lists(root, images, prefix, suffix):
    root.mkdir(exist_ok=True)
    for split, classes in images.classes.items():
        lines = [f"{c}{i:05}.{suffix},{c}" for c in classes for i in range(len(images.jpegs[c]))]
        (root / f"{prefix}{split}.csv").write_text("\n".join(["filename,label", *lines]) + "\n")


def write_listed(root, images, where="", prefix="", encode=None):
    write_files(root, images, lambda split, c: "images", encode)
    write_lists(root / where, images, prefix, "png" if encode else "jpg")


def write_labels(root, images, key="labels"):
    for split, classes in images.classes.items():
        labels = {key: np.array(images.mixed(split)[1]), f"{key}_str": classes}
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels, protocol=2))


def write_npz(root, images, save=np.savez):
    for split in SPLITS:
        save(root / f"{split}_images.npz", images=images.mixed(split)[0][..., ::-1])  # BGR
    write_labels(root, images)


def write_png(root, images, key="label_specific", shape=(-1, 1)):
    for split in SPLITS:
        with ThreadPoolExecutor() as pool:
            files = list(pool.map(png, images.mixed(split)[0]))
        encoded = [np.frombuffer(file, np.uint8).reshape(shape) for file in files]
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(encoded, protocol=2))
    write_labels(root, images, key)


def nameless(content):
    return {key: content[key] for key in ("data", "labels")}


MINI = {
    "pickles, long names": functools.partial(write_pickles, prefix=LONG),
    "pickles, short names": write_pickles,
    "pickles of 64 px": lambda root, images: write_pickles(root, images, pixels=images.small),
    "protocol 2": functools.partial(write_pickles, dump=functools.partial(pickle.dumps, protocol=2)),
    "Python 2": functools.partial(write_pickles, dump=lambda content: python2_pickle(**nameless(content))),
    "bytes for keys": functools.partial(
        write_pickles, dump=lambda content: pickle.dumps({k.encode(): v for k, v in nameless(content).items()}, 2)
    ),
    "JPEG files with lists": functools.partial(write_listed, prefix="ravi_"),
    "PNG files with lists": functools.partial(write_listed, where="splits", encode=png),
    "JPEG files in split folders": functools.partial(write_files, folder_of="{}/{}".format),
}
TIERED = {
    "npz": write_npz,
    "compressed npz": functools.partial(write_npz, save=np.savez_compressed),
    "PNG": write_png,
    "flat PNG": functools.partial(write_png, key="labels", shape=-1),
    "JPEG files in split folders": functools.partial(write_files, folder_of="{}/{}".format),
    "JPEG files in class folders": functools.partial(write_files, folder_of=lambda split, c: c),
}
NAMELESS = ("Python 2", "bytes for keys")


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="MAML_JAX_TINY_IMAGENET names no folder of Tiny-ImageNet")
@pytest.mark.parametrize(
    ("module", "form"),
    [(mini_imagenet, form) for form in MINI] + [(tiered_imagenet, form) for form in TIERED],
    ids=lambda x: x if isinstance(x, str) else x.__name__.rpartition(".")[2],
)
def test_every_form_gives_the_same_store(tmp_path, module, form):
    forms, lists = (MINI, "mini_ravi") if module is mini_imagenet else (TIERED, "tiered")
    expected = images(lists)
    (tmp_path / "raw").mkdir()
    forms[form](tmp_path / "raw", expected)
    path = store.build(module.source(tmp_path / "raw"), tmp_path / "cache", progress=False)
    store.verify(path)
    for split, classes in expected.classes.items():
        opened = store.open_store(path, split)
        names = [f"{split}/{i}" for i in range(len(classes))] if form in NAMELESS else classes
        assert opened.class_names == tuple(names)
        assert opened.counts.tolist() == [len(expected.pixels[c]) for c in classes]
        for i, c in enumerate(classes):
            np.testing.assert_array_equal(opened.class_images(i), expected.pixels[c])
    for folder in ("raw", "cache"):  # which pytest would keep: half a gigabyte a form
        shutil.rmtree(tmp_path / folder)
