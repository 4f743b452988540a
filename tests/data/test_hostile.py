"""Broken and hostile raw files, as the command line meets them: one clear error, and nothing else happens."""

import functools
import gzip
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml_jax import cli
from tests.data import test_cifar, test_folder, test_mini_imagenet, test_tiered_imagenet
from tests.data.test_archive import write_tar

ROOT = Path(__file__).parents[2]


class Touch:
    """Pickles as a command that makes a file `victim`."""

    def __reduce__(self):
        return os.system, ("touch victim",)


def damage_mini(root, **contents):
    test_mini_imagenet.write_pickles(root, **contents)


def damage_cifar(root, damage):
    test_cifar.write_folder(root, "")
    damage(root / "data")


def other_size(folder):
    Image.new("RGB", (31, 32)).save(folder / "bee" / "000.png")


def empty_class(folder):
    for file in (folder / "bee").iterdir():
        file.unlink()


def two_splits(root):
    test_folder.write_classes(root, prefix=lambda name: test_folder.SPLIT_OF[name])
    test_folder.save(root / "val" / "ant" / "1.png", test_folder.pixels("ant", 0))


def truncated_archive(root):
    test_tiered_imagenet.write_npz(root)
    os.truncate(root / "train_images.npz", (root / "train_images.npz").stat().st_size - 50)


def write_npy(root, shape):
    """Says of a few bytes that they are an array of a shape."""
    test_tiered_imagenet.write_npz(root)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    with zipfile.ZipFile(root / "val_images.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(50))


def damaged_tar(root):
    """The header of the last image is not one, where an archive might as well end."""
    images = {f"{name}/1.png": test_tiered_imagenet.png(IMAGES[0]).tobytes() for name in "abcd"}
    content = bytearray(write_tar(root / "all.tar", images).read_bytes())
    content[content.index(b"d/1.png") + 148] ^= 0xFF
    (root / "all.tar").write_bytes(content)


def write_val_list(root, content):
    test_mini_imagenet.write_images(root)
    (root / "val.csv").write_bytes(content)


def with_file(root, content, name="x.jpg"):
    (test_folder.write_classes(root) / "bee" / name).write_bytes(content)


def deep_tiff():
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8), 90_000, np.int32)).save(content, "TIFF")
    return content.getvalue()


def bomb(depth=9):
    """A list of ten times a list of ten times a list, and so on."""
    return functools.reduce(lambda inner, _: [inner] * 10, range(depth), [0] * 10)


IMAGES = np.zeros((3, 8, 8, 3), np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%touch victim) (w) file\n"
CASES = {
    "pickle that unfolds without end": (
        "mini_imagenet",
        lambda root: damage_mini(root, val={"data": bomb(), "labels": [0]}),
        r"raw/val\.pickle: 'data' is a list of lists, expected an array",
    ),
    "names that unfold without end": (
        "tiered_imagenet",
        lambda root: test_tiered_imagenet.write_labels(
            test_tiered_imagenet.write_npz(root), val={"labels": bomb(), "labels_str": bomb()}
        ),
        r"raw/val_labels\.pkl: 'labels' is a list of lists",
    ),
    "images of no pixels": (
        "mini_imagenet",
        lambda root: damage_mini(root, val={"data": IMAGES[:, :0], "labels": [0] * 3}),
        r"raw/val\.pickle: 'data' is uint8 \[3, 0, 8, 3\], expected uint8",
    ),
    "npz that says more than it holds": (
        "tiered_imagenet",
        lambda root: write_npy(root, (2, 8, 8, 3)),
        r"cannot read .*raw/val_images\.npz: an array of shape \[2, 8, 8, 3\] in 50 bytes",
    ),
    "npz of a negative shape": (
        "tiered_imagenet",
        lambda root: write_npy(root, (-2, -25)),
        r"cannot read .*raw/val_images\.npz: an array of shape \[-2, -25\] in 50 bytes",
    ),
    "npz with an unreadable header": (
        "tiered_imagenet",
        lambda root: write_npy(root, "(" * 999),
        r"cannot read .*raw/val_images\.npz: ",
    ),
    "images of another size in a pickle": (
        "cifar_fs",
        lambda root: test_cifar.write_pickles(root, "cifar_fs", val={"data": IMAGES, "labels": [0] * 3}),
        r"raw/val\.pickle: 'data' is of images of 8 x 8 pixels, expected 32 x 32",
    ),
    "damaged tar": ("folder", damaged_tar, r"cannot read .*raw/all\.tar: damaged at byte 3072; download it again"),
    "image that is a program": (
        "folder",
        lambda root: with_file(root, EPS),
        r"image bee/x\.jpg in .*raw: it is none of",
    ),
    "image of 32 bits": (
        "folder",
        lambda root: with_file(root, deep_tiff(), "x.tif"),
        r"error: cannot read the image bee/x\.tif in [^:]*raw: its values are 90000 to 90000, expected 0 to 65535$",
    ),
    "list of binary": (
        "mini_imagenet",
        lambda root: write_val_list(root, b'"\x1b[2J\n\0\n'),
        r"raw/val\.csv line 1 is '\?\[2J\?\?', expected 'filename,label'",
    ),
    "list with an endless field": (
        "mini_imagenet",
        lambda root: write_val_list(root, b"x" * 200_000),
        r"cannot read .*raw/val\.csv: field larger than",
    ),
    "list without a label": (
        "mini_imagenet",
        lambda root: write_val_list(root, b"val0.jpg,n1\nval1.jpg,\n"),
        r"raw/val\.csv line 2 is 'val1\.jpg,', expected 'filename,label'",
    ),
    "split of brackets": (
        "folder",
        lambda root: (test_folder.write_classes(root) / "splits.json").write_text("[" * 100_000),
        r"splits\.json in .*raw is not JSON",
    ),
    "pickle that runs code": (
        "mini_imagenet",
        lambda root: damage_mini(root, val=pickle.dumps({"data": IMAGES, "labels": Touch()})),
        r"raw/val\.pickle asks for (posix|nt)\.system.*not loaded",
    ),
    "labels that run code": (
        "tiered_imagenet",
        lambda root: test_tiered_imagenet.write_labels(
            test_tiered_imagenet.write_npz(root), train=pickle.dumps(Touch())
        ),
        r"raw/train_labels\.pkl asks for (posix|nt)\.system.*not loaded",
    ),
    "wrong label count": (
        "mini_imagenet",
        lambda root: damage_mini(root, test={"data": IMAGES, "labels": [0, 1]}),
        r"raw/test\.pickle: 'labels' is int64 \[2\], expected one integer for each of 3 images",
    ),
    "images of different sizes in a pickle": (
        "mini_imagenet",
        lambda root: damage_mini(root, train={"data": [IMAGES[0], IMAGES[0], IMAGES[0, :7]], "labels": [0, 1, 1]}),
        r"raw/train_phase_train\.pickle: .* 'data' differ in shape: the first is \[8, 8, 3\], number 2 is \[7, 8, 3\]",
    ),
    "truncated npz": ("tiered_imagenet", truncated_archive, r"cannot read .*raw/train_images\.npz.*download it again"),
    "truncated zip": (
        "cifar_fs",
        lambda root: (root / "cifar100.zip").write_bytes(b"PK\3\4 and no more"),
        r"cannot read .*raw/cifar100\.zip.*download it again",
    ),
    "truncated tar": (
        "fc100",
        lambda root: (root / "cifar-100-python.tar.gz").write_bytes(gzip.compress(os.urandom(9999))[:5000]),
        r"cannot read .*raw/cifar-100-python\.tar\.gz.*download it again",
    ),
    "image of another size": (
        "cifar_fs",
        lambda root: damage_cifar(root, other_size),
        r"the image data/bee/000\.png in .*raw is 31 x 32 pixels, expected 32 x 32",
    ),
    "empty class": ("cifar_fs", lambda root: damage_cifar(root, empty_class), r"class 'bee' from .*raw has no images"),
    "class in two splits": (
        "folder",
        two_splits,
        r"class 'ant' from .*raw is in split 'train' and again in split 'val'",
    ),
    "no image": (
        "folder",
        lambda root: [test_folder.write_classes(root), (root / "bee" / "bee0.png").write_bytes(b"<html>")],
        r"cannot read the image bee/bee0\.png in .*raw",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(prepare, tmp_path, case):
    name, damage, message = CASES[case]
    damage(tmp_path / "raw")
    status, out, err = prepare(name, 32)
    assert status == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert err.endswith(errors[0] + "\n")
    assert "Traceback" not in err
    assert list((tmp_path / "here").iterdir()) == [], "something was executed or left behind"
    assert not (tmp_path / "cache").exists()


def test_the_commands_would_have_worked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Touch()))
    assert (tmp_path / "victim").exists()


def test_grey_image_among_colour_ones_is_converted(prepare, tmp_path):
    root = test_folder.write_classes(tmp_path / "raw")
    Image.new("L", (16, 16), 200).save(root / "bee" / "bee0.png")
    status, out, err = prepare("folder", 16)
    assert status == 0, err
    assert "16 x 16 pixels, 3 channels" in out


def test_prepare_says_what_there_is_and_checks_it(prepare, tmp_path):
    test_mini_imagenet.write_pickles(tmp_path / "raw")
    status, _, err = prepare("mini_imagenet", 16, "--check")
    assert (status, err.count("error: ")) == (2, 1)
    assert "there is no store" in err
    assert not (tmp_path / "cache").exists()
    status, out, err = prepare("mini_imagenet", 16)
    assert status == 0
    assert "image-net.org" in out
    assert re.search(r"train +3 classes +6 images +0\.0 MiB +mean 0\.\d+, 0\.\d+, 0\.\d+ +std", out)
    assert "published train split of mini_imagenet has 64 classes, this one 3: results on it are not comparable" in err
    assert prepare("mini_imagenet", 16)[:2] == prepare("mini_imagenet", 16, "--check")[:2] == (0, out)
    file = next((tmp_path / "cache").rglob("val.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    status, _, err = prepare("mini_imagenet", 16, "--check")
    assert status == 2
    assert "val.npy differs from its checksum" in err
    assert cli.main(["train", "--check"]) == 2
