import hashlib
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from maml_jax import data
from maml_jax.data.download import Download, fetch
from maml_jax.data.source import MissingFiles
from maml_jax.errors import DataError
from tests.data.test_data import settings
from tests.data.test_store import make_source

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)


@pytest.fixture
def offer(tmp_path):
    """A file to be downloaded, on this machine."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "x.bin").write_bytes(CONTENT)
    url = (tmp_path / "server" / "x.bin").as_uri()
    return Download("x.bin", url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_fetch(tmp_path, offer, monkeypatch):
    file = fetch(offer, tmp_path / "new" / "raw", progress=False)
    assert file == tmp_path / "new" / "raw" / "x.bin"
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["x.bin"]
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("downloaded again"))
    assert fetch(offer, tmp_path / "new" / "raw", progress=False) == file


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"", CONTENT[:9] + b"!" + CONTENT[10:]])
def test_wrong_content_is_not_kept(tmp_path, offer, content):
    (tmp_path / "server" / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.bin is not the file expected: its SHA-256 should be "):
        fetch(offer, tmp_path / "new" / "raw", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_no_such_file(tmp_path, offer):
    (tmp_path / "server" / "x.bin").unlink()
    with pytest.raises(DataError, match=r"cannot download file://.*x\.bin"):
        fetch(offer, tmp_path / "raw", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_interrupted(tmp_path, offer, monkeypatch):
    class Slow:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, count):
            raise KeyboardInterrupt

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Slow())
    with pytest.raises(KeyboardInterrupt):
        fetch(offer, tmp_path / "raw", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_two_at_once(tmp_path, offer):
    threads = [threading.Thread(target=fetch, args=(offer, tmp_path / "raw", False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["x.bin"]
    assert (tmp_path / "raw" / "x.bin").read_bytes() == CONTENT


@pytest.fixture
def toy(monkeypatch, offer):
    """A data set that needs `x.bin`."""

    def source(settings, root):
        if not (root / "x.bin").exists():
            raise MissingFiles(f"x.bin is not in {root}")
        return make_source()

    monkeypatch.setitem(data.DATA_SETS, "toy", data.DataSet(source, "no terms", downloads=(offer,)))


def test_missing_files_are_downloaded_if_they_may(tmp_path, toy):
    raw = tmp_path / "raw"
    with pytest.raises(MissingFiles, match=r"x\.bin is not in"):
        data.open_stores(settings(tmp_path, dir=str(raw)), progress=False)
    stores = data.open_stores(settings(tmp_path, dir=str(raw), download=True), progress=False)
    assert set(stores) == {"train", "test"}
    assert (raw / "x.bin").read_bytes() == CONTENT


def test_without_network(tmp_path, toy, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(MissingFiles, match=r"x\.bin is not in .* \(cannot download file://.*no network.*\)"):
        data.open_stores(settings(tmp_path, dir=str(tmp_path / "raw"), download=True), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


@pytest.mark.parametrize("name", ["omniglot", "cifar_fs", "fc100", "cub200"])
def test_known_downloads(name):
    for known in data.DATA_SETS[name].downloads:
        assert known.url.startswith("https://")
        assert known.file in known.url
        assert len(known.sha256) == 64
        assert int(known.sha256, 16)
        assert known.size > 1e6
