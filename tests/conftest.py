"""Shared by all tests: short compiles, one cache, and exact arithmetic where asked for."""

import importlib.metadata
import os
import urllib.error
import urllib.request

# Compiling is what tests spend their time on. Without optimisations, and with XLA's older way to write machine code
# where it still has that, it takes a third of it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # which knows no such flag
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of stores and compiled programs for the whole session, so that each is made once."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"  # one for all workers
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))  # where the command line will put it too
    return folder


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_thread():
    """PyTorch on one thread: small shapes gain nothing from more, and lose much where the processor is shared."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _no_network(*_, **__):
    raise urllib.error.URLError("no network in tests")


@pytest.fixture
def launch(cache, monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, from an empty folder; gives status, output and messages."""
    from maml_jax import cli

    monkeypatch.setenv("MAML_JAX_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", _no_network)

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
