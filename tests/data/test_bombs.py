"""Files that are enormous, or unpack to that: refused before they take the memory or the disk."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from maml_jax import bounded, config, nonfinite
from maml_jax.data import hdf5, npz, pictures, split
from maml_jax.data.archive import open_tree
from maml_jax.data.images import Look
from maml_jax.errors import ConfigError, DataError
from tests.data import test_folder
from tests.data.test_archive import write_folder, write_tar, write_zip
from tests.helpers import pixels, png


def test_png_bomb(prepare, tmp_path):
    """An image that claims to be enormous is refused before it takes the memory."""
    root = test_folder.write_classes(tmp_path / "raw")
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "PNG")
    bomb = bytearray(header.getvalue())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    (root / "bee" / "bee0.png").write_bytes(bomb)
    status, _, err = prepare("folder", 16)
    assert status == 2
    assert "cannot read the image bee/bee0.png" in err


def huge(path):
    """A file that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(bounded.MOST_BYTES + 1)
    return path


def test_pictures_that_are_huge_or_gone_are_named(tmp_path):
    """And the others are read."""
    gone, fine = (tmp_path / name for name in ("gone.png", "fine.png"))
    fine.write_bytes(png(pixels(0)))
    read = pictures.read([huge(tmp_path / "huge.png"), gone, fine], Look(8, 3))
    assert read.paths == [fine]
    assert read.images.shape == (1, 8, 8, 3)
    assert read.problems == [
        f"cannot read {tmp_path}/huge.png: it is larger than 512 MiB",
        f"cannot read the image {gone}: No such file or directory",
    ]


READERS = {
    "image or list of a folder": lambda path: open_tree(path.parent).read(path.name),
    "split": split.JsonSplit,
    "labels of HDF5": hdf5._names,
    "configuration": config.load,
}


@pytest.mark.parametrize("of", READERS)
def test_a_file_that_is_read_as_a_whole_may_not_be_huge(tmp_path, of):
    with pytest.raises((DataError, ConfigError), match=r"huge\.json: it is larger than 512 MiB"):
        READERS[of](huge(tmp_path / "huge.json"))


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_members_of_archives_may_not_be_huge_either(tmp_path, monkeypatch, write):
    name = {write_folder: "x", write_zip: "x.zip", write_tar: "x.tgz"}[write]
    tree = open_tree(write(tmp_path / name, {"a/1.png": bytes(10), "a/2.png": bytes(11)}))
    monkeypatch.setattr(bounded, "MOST_BYTES", 10)
    assert tree.read("a/1.png") == bytes(10)
    with pytest.raises(DataError, match=r"a/2\.png.*: it is larger than"):
        tree.read("a/2.png")


def deflated(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(shape, kind, content):
    """The bytes of an array that claims a shape."""
    file = io.BytesIO()
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


ZEROS = npy((3_000_000,), np.uint8, bytes(3_000_000))  # which unpack from a thousandth


@pytest.mark.parametrize("of", ["arrays", "meta-step", "images", "tar"])
def test_what_unpacks_to_far_more_than_it_is(tmp_path, monkeypatch, of):
    monkeypatch.setattr(bounded, "UNPACKED", 1_000_000)
    path = tmp_path / {"tar": "x.tar.gz"}.get(of, "x.npz")
    if of == "tar":
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            info = tarfile.TarInfo("a/1.png")
            info.size = len(ZEROS)
            archive.addfile(info, io.BytesIO(ZEROS))
        path.write_bytes(gzip.compress(plain.getvalue()))
    else:
        deflated(path, images=ZEROS, config=npy((), "<U2", "{}".encode("utf-32-le")))
    read = {
        "arrays": bounded.read_npz,
        "meta-step": nonfinite.load,
        "images": lambda path: npz._open_npz(path, "images"),
        "tar": lambda path: open_tree(path).members,
    }[of]
    with pytest.raises(DataError, match=r"x\.\S+ unpacks from [\d,]+ bytes to [\d,]+ or more|x\.npz: 'images' unpacks"):
        read(path)
    monkeypatch.setattr(bounded, "UNPACKED", 10_000_000)
    if of != "meta-step":
        read(path)


@pytest.mark.parametrize("shape", [(2**62,), (2**47,), (2**40, 2**40), (10**6,), (-1,)])
def test_arrays_that_claim_any_shape(tmp_path, shape):
    path = deflated(tmp_path / "x.npz", a=npy(shape, np.float64, bytes(80)))
    with pytest.raises(DataError, match=r"x\.npz: not a readable \.npz file"):
        bounded.read_npz(path)


def test_json_that_is_deep_or_long(tmp_path):
    for content in ("[" * 100_000, json.dumps({"train": ["x" * 10_000_000]})):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(DataError, match=r"x\.json") as caught:
            split.JsonSplit(tmp_path / "x.json").pick({"a": []})
        assert len(str(caught.value)) < 1000
