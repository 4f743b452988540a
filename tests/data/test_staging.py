"""Stores under construction: whatever happens, what is there is whole, and nothing else stays."""

import errno
import os
import threading
from pathlib import Path

import pytest

from maml_jax.data import staging, store
from maml_jax.data.source import ClassImages
from maml_jax.errors import DataError
from tests.data.test_store import failing_source, make_source, pixels


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, DataError])
def test_failure_leaves_nothing(tmp_path, error):
    cache = tmp_path / "new" / "cache"
    with pytest.raises(error, match="midway"):
        store.build(failing_source(error("midway")), cache, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_was_there(tmp_path, built):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="midway"):
        store.build(failing_source(RuntimeError("midway")), tmp_path, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_full_disk(tmp_path):
    with pytest.raises(DataError, match=r"cannot write the store .*No space left.*data\.cache_dir"):
        store.build(failing_source(OSError(28, "No space left on device")), tmp_path / "cache", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("built_before", [False, True])
def test_what_killed_builders_left_is_swept(tmp_path, built_before):
    """Of this machine, whatever nobody holds the lock of; of others, what has not changed for a day."""
    source = make_source()
    name = store.folder_of(source, tmp_path).name
    if built_before:
        store.build(source, tmp_path, progress=False)
    with staging.beside(tmp_path / name) as busy:
        killed = Path(f"{busy}".removesuffix(".tmp") + "0.tmp")
        old, young, other = (tmp_path / f".{x}.tmp" for x in (f"{name}.far.0123", f"{name}.far.4567", "toy-more.89ab"))
        for left in (busy, killed, old, young, other):
            left.mkdir(exist_ok=True)
            (left / "train.npy").write_bytes(b"half")
        for path in (old, old / "train.npy", other, other / "train.npy"):
            os.utime(path, (0, 0))
        store.build(source, tmp_path, progress=False)
        assert {path.name for path in tmp_path.iterdir()} == {busy.name, young.name, other.name, name}
        assert (busy / "train.npy").exists()


def test_cache_dir_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the store"):
        store.build(make_source(), tmp_path / "file" / "cache", progress=False)


def test_a_store_that_cannot_be_put_in_its_place(tmp_path, monkeypatch):
    def refuse(old, new):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(DataError, match=r"cannot write the store .*Permission denied"):
        store.build(make_source(), tmp_path / "cache", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locks", ["none on this system", "none on this drive"])
def test_without_locks_stores_are_built_all_the_same(tmp_path, monkeypatch, locks):
    """What a killed builder left stays for a day then, since nothing else tells that nobody is at work on it."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if locks == "none on this system":
        monkeypatch.setattr(staging, "fcntl", None)
    else:
        monkeypatch.setattr(staging.fcntl, "flock", refuse)
    folder = store.folder_of(make_source(), tmp_path)
    left = tmp_path / f".{folder.name}.{staging._HOST}.dead.tmp"
    left.mkdir()
    assert store.build(make_source(), tmp_path, progress=False) == folder
    assert left.exists()
    os.utime(left, (0, 0))
    store.build(make_source(), tmp_path, progress=False)
    assert not left.exists()


def test_two_builders_at_once(tmp_path):
    meet = threading.Barrier(2, timeout=10)

    def load():
        meet.wait()  # neither can finish before the other has begun
        return pixels(0, 3)

    paths = []

    def run():
        paths.append(store.build(make_source({"train": [ClassImages("a", 3, load)]}), tmp_path, progress=False))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert list(tmp_path.iterdir()) == [paths[0]] == [paths[1]]
    store.verify(paths[0])
