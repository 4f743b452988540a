"""Data sets of tensorflow-datasets, written and read without TensorFlow."""

import io
import json
import socket
import sys
import types
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from maml_jax import data
from maml_jax.data import store, tfds_source
from maml_jax.errors import ConfigError, DataError
from tests.data.test_data import settings

tfds = pytest.importorskip("tensorflow_datasets")
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def pixels(label, i, channels=3):
    return np.random.default_rng([label, i]).integers(0, 256, (8, 8, channels), np.uint8)


def png(array):
    content = io.BytesIO()
    Image.fromarray(array.squeeze()).save(content, "PNG")
    return io.BytesIO(content.getvalue())


class ToyInsects(tfds.core.GeneratorBasedBuilder):
    """Five classes of three images in `train` and two in `test`, one of which has no label."""

    VERSION = tfds.core.Version("1.0.0")
    CHANNELS = 3
    LABEL = tfds.features.ClassLabel

    def _info(self):
        features = {
            "name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, self.CHANNELS), encoding_format="png"),
            "label": self.LABEL(names=NAMES) if self.LABEL else np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._make(range(3)), "test": self._make(range(3, 5))}

    def _generate_examples(self):
        pass

    def _make(self, images):
        for label in range(5):
            for i in images:
                known = label if (label, i) != (4, 4) or not self.LABEL else -1
                image = png(pixels(label, i, self.CHANNELS))
                yield f"{label}/{i}", {"name": f"{label} {i}", "image": image, "label": known}


class ToyGrey(ToyInsects):
    """The same in grey."""

    CHANNELS = 1


class ToyParts(ToyInsects):
    """The same in parts that are no usual splits."""

    def _split_generators(self, dl_manager):
        return {"first": self._make(range(3)), "second": self._make(range(3, 5))}


class ToyNumbers(ToyInsects):
    """The same without class labels."""

    LABEL = None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of prepared data sets."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (ToyInsects, ToyGrey, ToyParts, ToyNumbers):
        prepare(builder(data_dir=folder, file_format="array_record"))
    return folder


def prepare(builder, manual_dir=None):
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    builder.download_and_prepare(download_config=config, file_format="array_record")


def everything(source):
    return {split: {c.name: c.load() for c in classes} for split, classes in source.splits.items()}


def to_tfrecord(folder):
    """Rewrites a prepared data set in TFRecord files, as another library writes them."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for file in folder.glob("*array_record*"):
        records = ArrayRecordDataSource([str(file)])
        new = file.with_name(file.name.replace("array_record", "tfrecord"))
        writer = RecordWriter(str(new))
        for i in range(len(records)):
            writer.write(records[i])
        writer.close()
        file.unlink()
    info = folder / "dataset_info.json"
    text = info.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
    info.write_text(text.replace("{FILEFORMAT}-array_record", "{FILEFORMAT}"))
    return folder


def tfrecord_places(content):
    """Where each record begins, and its length."""
    place = 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        yield place, length
        place += length + 16


@pytest.mark.parametrize("name", ["toy_insects", "toy_grey"])
def test_classes_of_all_its_splits_are_dealt_out(prepared, name):
    channels = 1 if name == "toy_grey" else 3
    source = tfds_source.source(name, prepared, 8)
    loaded = everything(source)
    assert {split: len(classes) for split, classes in loaded.items()} == {"train": 3, "val": 1, "test": 1}
    merged = {label: images for classes in loaded.values() for label, images in classes.items()}
    assert sorted(merged) == NAMES
    for label, key in enumerate(NAMES):
        found = {image.tobytes() for image in merged[key]}
        assert found == {pixels(label, i, channels).tobytes() for i in range(5) if (label, i) != (4, 4)}
    assert source.digest() != tfds_source.source(name, prepared, 8, seed=1).digest()
    store.verify(store.build(source, prepared / f"cache {name}", progress=False))
    assert "tensorflow" not in sys.modules


def test_images_of_every_class_are_dealt_out_on_request(prepared):
    source = tfds_source.source("toy_parts", prepared, 8, "images")
    counts = {split: [c.count for c in classes] for split, classes in source.splits.items()}
    assert counts == {"train": [3, 3, 3, 3, 2], "val": [1] * 5, "test": [1] * 5}
    assert source.account.rule == "drawn at random with seed 0: 64, 16 and 20 % of the images of every class"


def test_formats_that_are_not_read(tmp_path):
    prepare(ToyGrey(data_dir=tmp_path, file_format="array_record"))
    info = tmp_path / "toy_grey" / "1.0.0" / "dataset_info.json"
    for file in info.parent.glob("*array_record*"):
        file.rename(file.with_name(file.name.replace("array_record", "riegeli")))
    info.write_text(info.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "riegeli"'))
    with pytest.raises(DataError, match=r"1\.0\.0 is in the format riegeli; array_record and tfrecord can be read"):
        dict(tfds_source.source("toy_grey", tmp_path, 8).splits)


def test_channels_of_no_known_meaning(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyInsects, "CHANNELS", 2)
    builder = ToyInsects(data_dir=tmp_path, file_format="array_record")
    monkeypatch.setattr(tfds_source, "_CHANNELS", {1: 1, 3: 3, 4: 3})
    with pytest.raises(DataError, match=r"toy_insects.* has images of 2 channels"):
        tfds_source._Examples(builder)


def test_json_split(prepared, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"train": ["eel", "ant"], "test": ["dog"]}))
    source = tfds_source.source("toy_insects", prepared, 8, str(file))
    assert {split: list(classes) for split, classes in everything(source).items()} == {
        "train": ["ant", "eel"],
        "test": ["dog"],
    }


def test_published_split(prepared, monkeypatch):
    """A list that is kept here, for a data set of which there is one; other names are refused as before."""
    listing = {"train": ["ant", "cat"], "val": ["bee"], "test": ["eel"]}
    pick = lambda classes: {split: {c: classes[c] for c in names} for split, names in listing.items()}  # noqa: E731
    monkeypatch.setitem(
        tfds_source._PUBLISHED, "toy_insects", types.SimpleNamespace(name="theirs", origin="of them", pick=pick)
    )
    source = tfds_source.source("toy_insects:1.0.0", prepared, 8, "theirs")
    assert {split: [c.name for c in classes] for split, classes in source.splits.items()} == listing
    assert source.account.rule == "of them"
    for name, split in (("toy_grey", "theirs"), ("toy_insects", "dn4")):
        with pytest.raises(ConfigError, match=r"data\.split is"):
            tfds_source.source(name, prepared, 8, split)


@pytest.mark.parametrize("name", ["cars196", "dtd"])
def test_published_splits_have_the_classes_that_tensorflow_datasets_has(name):
    split = tfds_source._PUBLISHED[name]
    labels = tfds.builder(name).info.features["label"].names
    assert {split.key(label) for label in labels} == set(split.split_of)
    assert len(labels) == len(split.split_of)


def test_tfrecord_reads_as_array_record_does(prepared, tmp_path):
    one = everything(tfds_source.source("toy_insects", prepared, 8))
    prepare(ToyInsects(data_dir=tmp_path, file_format="array_record"))
    folder = to_tfrecord(tmp_path / "toy_insects" / "1.0.0")
    other = everything(tfds_source.source("toy_insects", tmp_path, 8))
    for split in one:
        assert list(one[split]) == list(other[split])
        for name in one[split]:
            np.testing.assert_array_equal(one[split][name], other[split][name])
    file = next(folder.glob("*train.tfrecord*"))
    whole = file.read_bytes()
    starts = [place for place, _ in tfrecord_places(whole)]
    for damaged, message in {
        whole[:-9]: "truncated or damaged at byte",
        whole[: starts[-1]]: "it has 14 examples instead of 15",
        whole[:150] + bytes([whole[150] ^ 1]) + whole[151:]: "the record at byte 0 differs from its checksum",
    }.items():
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"cannot read .*train\.tfrecord.*: {message}"):
            dict(tfds_source.source("toy_insects", tmp_path, 8).splits)
    file.unlink()
    with pytest.raises(DataError, match=r"1\.0\.0 is incomplete: .*train\.tfrecord"):
        tfds_source.source("toy_insects", tmp_path, 8)


def test_damaged_array_record(tmp_path):
    prepare(ToyInsects(data_dir=tmp_path, file_format="array_record"))
    file = next((tmp_path / "toy_insects" / "1.0.0").glob("*train.array_record*"))
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read example \d+ of 'train' in .*toy_insects"):
        store.build(tfds_source.source("toy_insects", tmp_path, 8), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def take_offline(monkeypatch):
    def offline(*_):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


def test_unusable(prepared, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no such data set; did you mean stanford_dogs"):
        tfds_source.source("stanford_dog", prepared, 8)
    with pytest.raises(ConfigError, match=r"tfds:toy_insects:9\.9\.9'"):
        tfds_source.source("toy_insects:9.9.9", prepared, 8)
    with pytest.raises(ConfigError, match=r"data\.split is 'vinyals'; choose random"):
        tfds_source.source("toy_insects", prepared, 8, "vinyals")
    with pytest.raises(DataError, match=r"toy_numbers/1\.0\.0 is no image classification data set: .*ClassLabel"):
        tfds_source.source("toy_numbers", prepared, 8)
    with pytest.raises(DataError, match=r"is not prepared in .*tfds build stanford_dogs --file_format=array_record"):
        tfds_source.source("stanford_dogs", tmp_path, 8)

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"data\.name='tfds:huggingface:x': .*huggingface_hub"):
        tfds_source.source("huggingface:x", tmp_path, 8)
    take_offline(monkeypatch)
    with pytest.raises(DataError, match=r"could not prepare stanford_dogs: no network; it can be prepared where"):
        tfds_source.source("stanford_dogs", tmp_path, 8, download=True)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ConfigError, match=r"data\.name='tfds:x' needs tensorflow-datasets .*pip install 'maml-jax\[tfds\]'"
    ):
        tfds_source.source("x", prepared, 8)


def test_prepared_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    stores = data.open_stores(
        settings(tmp_path, name="tfds:toy_insects", dir=str(tmp_path / "raw"), image_size=8, download=True),
        progress=False,
    )
    assert stores["train"].images.shape[1:] == (8, 8, 3)
