"""One run at a time in a work directory, and nobody kept out by the dead."""

import json
import os
import signal
import socket

import pytest

from maml_jax import lock
from maml_jax.errors import ConfigError
from maml_jax.lock import FILE, only_one
from tests.helpers import TINY, start_python

HOLD = """
import pathlib, sys, time
from maml_jax.lock import only_one
with only_one(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process at work in the folder."""
    process = start_python("-c", HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_with_host_and_process_of_the_first(tmp_path, holder):
    message = f"process {holder.pid} on {socket.gethostname()}, since 20.* is at work in {tmp_path}"
    with pytest.raises(ConfigError, match=message), only_one(tmp_path):
        pytest.fail("both are in")


def test_a_run_is_refused_before_it_changes_anything(launch, tmp_path, holder):
    status, _, err = launch("--workdir", tmp_path, *TINY)
    assert status == 2
    assert f"process {holder.pid}" in err
    assert {entry.name for entry in tmp_path.iterdir()} == {FILE}


def test_what_a_killed_process_leaves_keeps_nobody_out(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / FILE).read_text())["process"] == holder.pid
    with only_one(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()
    with only_one(tmp_path):
        pass


def test_where_nothing_can_be_locked_that_is_said(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with only_one(tmp_path):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_without_locks_of_the_system_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with only_one(tmp_path), only_one(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"host": "a"'])
def test_a_holder_that_has_not_yet_said_who_it_is(tmp_path, holder, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"^another process is at work in "), only_one(tmp_path):
        pytest.fail("both are in")
