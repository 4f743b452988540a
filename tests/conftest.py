"""Shared by all tests: short compiles, one cache, and exact arithmetic where asked for."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

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


def pytest_make_parametrize_id(val, argname):
    """Bytes go by their argument's name: some hold the time they were made at, and workers have to agree on names."""
    return argname if isinstance(val, bytes) else None


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


_QUICK_COMPILES = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")  # which round as no user's programs do


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    """A folder with what a wheel is made of, and no repository round it."""
    root, copy = Path(__file__).parents[1], tmp_path_factory.mktemp("copy")
    for folder in ("maml_jax", "parity", "configs"):
        shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, copy)
    return copy


@pytest.fixture(scope="session")
def installed(copied, tmp_path_factory):
    """Runs a program of the installed wheel, in a folder where there is no repository; gives its output."""
    target, here = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("here")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", target, copied], check=True, capture_output=True)

    def run(*command, cache=here / "cache", optimised=False):
        kept = {name: value for name, value in os.environ.items() if not (optimised and name in _QUICK_COMPILES)}
        environment = {**kept, "PYTHONPATH": str(target), "MAML_JAX_CACHE": str(cache)}
        program = [target / "bin" / command[0]] if command[0] == "maml-jax" else [sys.executable, "-m", command[0]]
        done = subprocess.run([*program, *command[1:]], cwd=here, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, target

    return run


@pytest.fixture(scope="session")
def fresh(copied, tmp_path_factory):
    """Runs maml-jax of a wheel in a fresh environment, which has nothing but it and what it depends on.

    Gives the exit status, output and messages. Takes an index of packages: without one, the test is skipped.
    """
    folder, here = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv" / "bin" / "pip", "--quiet", "--disable-pip-version-check"]
    kept = {name: value for name, value in os.environ.items() if name not in (*_QUICK_COMPILES, "PYTHONPATH")}
    for step in (
        lambda: ["wheel", "--no-deps", "--wheel-dir", folder, copied],
        lambda: ["install", *folder.glob("*.whl")],
    ):
        done = subprocess.run([*pip, *step()], env=kept, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a fresh environment cannot be made here: {done.stderr.strip().splitlines()[-1]}")

    def run(*command):
        program = [folder / "venv" / "bin" / "maml-jax", *map(str, command)]
        environment = {**kept, "MAML_JAX_CACHE": str(here / "cache")}
        done = subprocess.run(program, cwd=here, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run
