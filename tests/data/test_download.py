import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest
import requests

from maml_jax import data
from maml_jax.data.download import Download, fetch
from maml_jax.data.source import MissingFiles
from maml_jax.errors import DataError
from tests.data.test_data import settings
from tests.data.test_store import make_source

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files in silence, and notes what was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of this machine's, of the folder `server`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    (tmp_path / "server").mkdir()
    handler = functools.partial(Server, directory=tmp_path / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def offer(tmp_path, server):
    """A file to be downloaded, on this machine."""
    (tmp_path / "server" / "x.bin").write_bytes(CONTENT)
    url = f"http://127.0.0.1:{server.server_port}/x.bin"
    return Download("x.bin", url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_fetch(tmp_path, offer, server):
    file = fetch(offer, tmp_path / "new" / "raw", progress=False)
    assert file == tmp_path / "new" / "raw" / "x.bin"
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["x.bin"]
    assert fetch(offer, tmp_path / "new" / "raw", progress=False) == file
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"", CONTENT[:9] + b"!" + CONTENT[10:]])
def test_wrong_content_is_not_kept(tmp_path, offer, content):
    (tmp_path / "server" / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.bin is not the file expected: its SHA-256 should be "):
        fetch(offer, tmp_path / "new" / "raw", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_no_such_file(tmp_path, offer, server):
    (tmp_path / "server" / "x.bin").unlink()
    with pytest.raises(DataError, match=r"cannot download http://.*x\.bin: 404"):
        fetch(offer, tmp_path / "raw", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]
    assert len(server.asked) == 3


def test_a_second_attempt(tmp_path, offer, monkeypatch, capsys):
    """What fails once is tried again, and shown from its beginning."""
    get, calls = requests.get, []

    def fail_once(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 1:
            raise requests.ConnectionError("reset")
        return get(*arguments, **named)

    monkeypatch.setattr(requests, "get", fail_once)
    monkeypatch.setattr("maml_jax.progress._SECONDS_BETWEEN_LINES", -1)
    assert fetch(offer, tmp_path / "raw").read_bytes() == CONTENT
    assert [line.split(", ")[1] for line in capsys.readouterr().err.splitlines()] == [f"{i} of 4 MiB" for i in range(4)]


def test_interrupted(tmp_path, offer, monkeypatch):
    class Slow(requests.Response):
        status_code = 200

        def raise_for_status(self):
            pass

        def iter_content(self, chunk_size=1):
            yield b"x"
            raise KeyboardInterrupt

    monkeypatch.setattr(requests, "get", lambda *_, **__: Slow())
    with pytest.raises(KeyboardInterrupt):
        fetch(offer, tmp_path / "raw", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_several_at_once(tmp_path, offer, server):
    threads = [threading.Thread(target=fetch, args=(offer, tmp_path / "raw", False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["x.bin"]
    assert (tmp_path / "raw" / "x.bin").read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.fixture
def toy(monkeypatch, offer):
    """A data set that needs `x.bin`."""

    def source(settings, root):
        if not (root / "x.bin").exists():
            raise MissingFiles(f"x.bin is not in {root}")
        return make_source()

    monkeypatch.setitem(data.DATA_SETS, "toy", data.DataSet("toy", source, "no terms", downloads=(offer,)))


def test_missing_files_are_downloaded_if_they_may(tmp_path, toy):
    raw = tmp_path / "raw"
    with pytest.raises(MissingFiles, match=r"x\.bin is not in"):
        data.open_stores(settings(tmp_path, dir=str(raw)), progress=False)
    stores = data.open_stores(settings(tmp_path, dir=str(raw), download=True), progress=False)
    assert set(stores) == {"train", "test"}
    assert (raw / "x.bin").read_bytes() == CONTENT


def test_without_network(tmp_path, toy, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(MissingFiles, match=r"x\.bin is not in .* \(cannot download http://.*no network.*\)"):
        data.open_stores(settings(tmp_path, dir=str(tmp_path / "raw"), download=True), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


@pytest.mark.parametrize("name", ["omniglot", "cifar_fs", "fc100", "cub200", "dtd"])
def test_known_downloads(name):
    for known in data.DATA_SETS[name].downloads:
        assert known.url.startswith("https://")
        assert known.file in known.url
        assert len(known.sha256) == 64
        assert int(known.sha256, 16)
        assert known.size > 1e6
