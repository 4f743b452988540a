"""FGVC-Aircraft, VGG Flowers, DTD, Stanford Cars and Stanford Dogs: forms of their files, splits, and damage."""

import io
import json
import re

import numpy as np
import pytest
import scipy.io

from maml_jax.data import aircraft, cars, dogs, dtd, flowers
from maml_jax.data.dataset import DataSettings
from maml_jax.data.source import MissingFiles, published_split
from maml_jax.errors import ConfigError, DataError
from tests.data.test_archive import write_folder, write_tar
from tests.helpers import pixels, png
from tests.models import save_run

SETS = {module.DATA_SET.name: module for module in (aircraft, flowers, dtd, cars, dogs)}
CLASSES = {
    "aircraft": {"train": ["F-16A/B", "Falcon 2000"], "val": ["DC-10"], "test": ["737-400"]},
    "flowers": {"train": ["001", "100"], "val": ["010"], "test": ["098"]},
    "dtd": {"train": ["braided", "polka-dotted"], "val": ["grid"], "test": ["woven"]},
    "cars": {
        "train": ["Acura TSX Sedan 2012", "Ram C/V Cargo Van Minivan 2012"],
        "val": ["FIAT 500 Abarth 2012"],
        "test": ["Acura TL Sedan 2012"],
    },
    "dogs": {"train": ["n02085620-Chihuahua"], "val": ["n02115641-dingo"], "test": ["n02110958-pug"]},
}
PER_CLASS = 2


def images(name):
    """An image file for each image of each class: number, class and content."""
    classes = [c for names in CLASSES[name].values() for c in names]
    return [(2 * k + i + 1, c, png(pixels(k, i))) for k, c in enumerate(classes) for i in range(PER_CLASS)]


def mat(**variables):
    content = io.BytesIO()
    scipy.io.savemat(content, variables, do_compression=True)
    return content.getvalue()


def records(rows, path):
    """MATLAB's struct array of images and their classes."""
    kinds = [("bbox_x1", object), ("class", object), (path, object)]
    return np.array([[(1, number, file) for file, number in rows]], kinds)


def class_folders(name, below, spell=lambda c: c):
    return {f"{below}{spell(c)}/{n}.jpg": content for n, c, content in images(name)}


def aircraft_files(below="data/"):
    """Images of 12 x 10 pixels, of which the box holds the 8 x 8 that the others have."""
    files, lines, boxes = {}, {"train": "", "val": "", "test": ""}, ""
    for k, (c, i) in enumerate((c, i) for names in CLASSES["aircraft"].values() for c in names for i in range(2)):
        whole = np.zeros((10, 12, 3), np.uint8)
        whole[1:9, 3:11] = pixels(k // 2, i)
        files[f"{below}images/{k + 1:07}.jpg"] = png(whole)
        lines[("train", "val", "test")[k % 3]] += f"{k + 1:07} {c}\n"
        boxes += f"{k + 1:07} 3 1 11 9\n"
    lists = {f"{below}images_variant_{part}.txt": text.encode() for part, text in lines.items()}
    return {**files, **lists, f"{below}images_box.txt": boxes.encode()}


def flower_files():
    labels = np.array([[int(c) for _, c, _ in images("flowers")]], np.uint8)
    return {"imagelabels.mat": mat(labels=labels)}, {f"jpg/image_{n:05}.jpg": x for n, _, x in images("flowers")}


def car_files(halves=True):
    names = [c for names in CLASSES["cars"].values() for c in names]
    meta, numbers = np.array([names], object), {c: k + 1 for k, c in enumerate(names)}
    rows = [(f"{n:05}.jpg", numbers[c]) for n, c, _ in images("cars")]
    if not halves:
        paths = [(f"car_ims/{file}", number) for file, number in rows]
        labels = {"cars_annos.mat": mat(annotations=records(paths, "relative_im_path"), class_names=meta)}
        return labels, {f"car_ims/{n:05}.jpg": content for n, _, content in images("cars")}
    half = lambda n: "cars_train" if n % 2 else "cars_test"  # noqa: E731
    labels = {
        "devkit/cars_meta.mat": mat(class_names=meta),
        "devkit/cars_train_annos.mat": mat(annotations=records(rows[::2], "fname")),
        "cars_test_annos_withlabels.mat": mat(annotations=records(rows[1::2], "fname")),
    }
    return labels, {f"{half(n)}/{n:05}.jpg": content for n, _, content in images("cars")}


def aircraft_tar(root):
    write_tar(root / aircraft.ARCHIVE, aircraft_files("fgvc-aircraft-2013b/data/"))


def flower_tar(root):
    labels, files = flower_files()
    write_folder(root, labels)
    write_tar(root / "102flowers.tgz", files)


def car_tars(root):
    labels, files = car_files()
    write_folder(root, {"cars_test_annos_withlabels.mat": labels.pop("cars_test_annos_withlabels.mat")})
    write_tar(root / "car_devkit.tgz", labels)
    for half in ("cars_train", "cars_test"):
        write_tar(root / f"{half}.tgz", {file: content for file, content in files.items() if file.startswith(half)})


def cars_of(halves):
    return lambda root: [write_folder(root, part) for part in car_files(halves)]


FORMS = {
    "aircraft lists": lambda root: write_folder(root, aircraft_files()),
    "aircraft archive": aircraft_tar,
    "aircraft folders": lambda root: write_folder(
        root, class_folders("aircraft", "train/", lambda c: c.replace("/", "-"))
    ),
    "flowers archive": flower_tar,
    "flowers labels": lambda root: [write_folder(root, part) for part in flower_files()],
    "flowers folders": lambda root: write_folder(root, class_folders("flowers", "train/", lambda c: c.lstrip("0"))),
    "dtd folders": lambda root: write_folder(
        root, {**class_folders("dtd", "images/"), "labels/train1.txt": b"a/b.jpg"}
    ),
    "dtd archive": lambda root: write_tar(root / "dtd-r1.0.1.tar.gz", class_folders("dtd", "dtd/images/")),
    "cars halves": cars_of(True),
    "cars together": cars_of(False),
    "cars archives": car_tars,
    "cars folders": lambda root: write_folder(root, class_folders("cars", "x/test/", lambda c: c.replace("/", "-"))),
    "dogs folders": lambda root: write_folder(
        root, {**class_folders("dogs", "Images/"), "Images/n02110341-x/1.jpg": b""}
    ),
    "dogs archive": lambda root: write_tar(root / "images.tar", class_folders("dogs", "Images/")),
}


def names(source):
    return {split: [c.name for c in classes] for split, classes in source.splits.items()}


@pytest.mark.parametrize("name", SETS)
def test_lists_are_complete(name):
    """As many classes in each split as were published, none of them twice, and every one told apart by its key."""
    module, total = SETS[name], {"aircraft": 100, "flowers": 102, "dtd": 47, "cars": 196, "dogs": 120}[name]
    listed = published_split(name)
    assert {split: len(classes) for split, classes in listed.items()} == module.DATA_SET.classes
    assert len(module.SPLIT.split_of) == sum(map(len, listed.values())) == total
    assert "" not in module.SPLIT.split_of


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(tmp_path, form):
    name = form.split()[0]
    FORMS[form](tmp_path)
    source, key = SETS[name].source(tmp_path, image_size=8), SETS[name].SPLIT.key
    order = [key(c) for names in CLASSES[name].values() for c in names]
    for split, expected in CLASSES[name].items():
        found = {key(c.name): c.read((8, 8, 3)) for c in source.splits[split]}
        assert found.keys() == {key(c) for c in expected}
        for c, read in found.items():
            np.testing.assert_array_equal(read, [pixels(order.index(c), i) for i in range(PER_CLASS)])
    assert source.account.rule == SETS[name].SPLIT.origin


@pytest.mark.parametrize("name", SETS)
def test_other_splits_and_what_there_is_none_of(tmp_path, name):
    entry = SETS[name].DATA_SET
    source = lambda split, seed=0, root=tmp_path: entry.source(  # noqa: E731
        DataSettings(name, image_size=8, split=split, split_seed=seed), root
    )
    with pytest.raises(MissingFiles, match=r"nowhere.* needs .*http"):
        source("", root=tmp_path / "nowhere")
    next(write for form, write in FORMS.items() if form.startswith(name))(tmp_path)
    own = names(source(""))
    drawn = {seed: names(source("random", seed)) for seed in range(4)}
    everything = lambda found: sorted(c for classes in found.values() for c in classes)  # noqa: E731
    assert all(everything(found) == everything(own) for found in drawn.values())
    assert any(found != drawn[0] for found in drawn.values())
    assert len({source("").digest(), *(source("random", seed).digest() for seed in (0, 1))}) == 3
    turned = {"train": own["test"], "val": own["val"], "test": own["train"]}
    (tmp_path / "mine.json").write_text(json.dumps(turned))
    assert names(source(str(tmp_path / "mine.json"))) == turned
    with pytest.raises(ConfigError, match=r"data\.split is 'best'; choose one of (dn4|meta_dataset), random"):
        source("best")


@pytest.mark.parametrize("name", SETS)
def test_folders_of_something_else(tmp_path, name):
    write_folder(tmp_path, {"images/other/1.jpg": png(pixels(0))})
    with pytest.raises(MissingFiles, match=r"needs .*http"):
        dict(SETS[name].source(tmp_path).splits)


def replaced(files, **changes):
    return {file: changes.get(re.sub(r"\W", "_", file.rpartition("/")[2]), content) for file, content in files.items()}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "images_variant_val_txt",
            b"0000001\n",
            r"line 1 of data/images_variant_val\.txt .* must hold an image and its",
        ),
        ("images_variant_val_txt", b"\n0000001 DC-8\n", r"line 2 of .* the same wherever it is named"),
        ("images_variant_val_txt", b"../../x DC-8\n", r"names the image \.\./\.\./x, which is not there"),
        ("images_box_txt", b"0000001 3 1 11\n", r"line 1 of data/images_box\.txt .* an image and four numbers"),
        ("images_box_txt", b"0000001 3 -1 11 9\n", r"line 1 of .*four numbers"),
        ("images_box_txt", None, r"has no images_box\.txt; it comes with "),
        ("images_box_txt", b"0000001 3 1 11 9\n", r"images_box\.txt in .* has no box for the image 0000004"),
    ],
)
def test_damaged_lists_of_aircraft(tmp_path, file, content, message):
    files = replaced(aircraft_files(), **{file: content})
    write_folder(tmp_path, {name: body for name, body in files.items() if body is not None})
    with pytest.raises(DataError, match=message):
        dict(aircraft.source(tmp_path, image_size=8).splits)


def test_a_box_that_holds_nothing(tmp_path):
    files = aircraft_files()
    files["data/images_box.txt"] = files["data/images_box.txt"].replace(b"0000001 3 1 11 9", b"0000001 12 1 99 9")
    write_folder(tmp_path, files)
    first = next(c for c in aircraft.source(tmp_path, image_size=8).splits["train"] if c.name == "F-16A/B")
    with pytest.raises(DataError, match=r"the box \(12, 1, 99, 9\) holds nothing of the image .*0000001\.jpg.*12 x 10"):
        first.load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cannot read .*imagelabels\.mat"),
        (mat(labels=np.ones((1, 10), np.uint8))[:-20], r"cannot read .*imagelabels\.mat.*download it again"),
        (mat(label=np.ones((1, 10))), r"has the variables label, but not labels"),
        (mat(labels=np.ones((1, 3))), r"imagelabels\.mat has labels of 3 images, and none of jpg/image_00004\.jpg"),
        (mat(labels=np.full((1, 10), np.nan)), r"cannot read the labels in imagelabels\.mat"),
        (mat(labels=np.full((1, 10), 1.5)), r"cannot read the labels in imagelabels\.mat: they are no integers"),
        (bytes(5 << 20), r"imagelabels\.mat is larger than labels can be"),
    ],
)
def test_damaged_labels_of_flowers(tmp_path, content, message):
    _, files = flower_files()
    write_folder(tmp_path, {**files, "imagelabels.mat": content})
    with pytest.raises(DataError, match=message):
        dict(flowers.source(tmp_path, image_size=8).splits)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cars_meta_mat", mat(class_names=np.array([["a"]], object)), r"of class 2: there is no such image or no such"),
        ("cars_train_annos_mat", mat(annotations=records([("9.jpg", 1)], "fname")), r"the image cars_train/9\.jpg"),
        ("cars_train_annos_mat", mat(annotations=np.ones((1, 3))), r"of cars_train_annos\.mat lacks fname or class"),
        ("cars_train_annos_mat", mat(annotations=records([("1.jpg", "one")], "fname")), r"cannot read the labels in"),
        ("cars_test_annos_withlabels_mat", None, r"there is no cars_test_annos_withlabels\.mat in"),
    ],
)
def test_damaged_labels_of_cars(tmp_path, file, content, message):
    labels, files = car_files()
    labels = {name: body for name, body in replaced(labels, **{file: content}).items() if body is not None}
    write_folder(tmp_path, {**labels, **files})
    with pytest.raises(DataError, match=message):
        dict(cars.source(tmp_path, image_size=8).splits)


def test_a_store_is_built_anew_with_other_labels(tmp_path):
    labels, files = flower_files()
    write_folder(tmp_path, {**labels, **files})
    before = flowers.source(tmp_path).digest()
    (tmp_path / "imagelabels.mat").write_bytes(mat(labels=np.ones((1, 8192), np.uint8)))
    assert flowers.source(tmp_path).digest() != before


def test_prepare_says_how_the_classes_differ_from_the_published(prepare, tmp_path):
    FORMS["dtd folders"](tmp_path / "raw")
    status, out, err = prepare("dtd", 16)
    assert status == 0, err
    assert "the split is that of Meta-Dataset" in out
    assert "the published train split of dtd has 33 classes, this one 2" in err


def test_a_model_of_mini_imagenet_is_tested_on_flowers(launch, tmp_path):
    """The command of a cross-domain evaluation: only the data set is named."""
    save_run(tmp_path / "run", channels=3, parallel__devices=1)
    files = {}
    for k, c in enumerate([*published_split("flowers")["test"][:4], "001", "010"]):
        files |= {f"{c}/{i}.jpg": png(pixels(k, i, shape=(20, 24, 3))) for i in range(4)}
    write_folder(tmp_path / "datasets" / "flowers", files)
    few = ["--config.eval.tasks=6", "--config.eval.query=2"]
    status, _, err = launch("evaluate", "--weights", "run", "--workdir", "mine", *few, "--config.data.name=flowers")
    assert status == 0, err
    (path,) = (tmp_path / "mine").rglob("*flowers*.json")
    data = json.loads(path.read_text())["data"]
    assert (data["name"], data["trained_on"], data["channels"]) == ("flowers", "mini_imagenet", 3)
