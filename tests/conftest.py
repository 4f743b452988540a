"""Shared by all tests: exact arithmetic where asked for, and small models so that compiles are short."""

import os

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of machine code: compiling is what tests spend their time on
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import numpy as np
import pytest

from maml_jax.episode import Episode
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.model import Classifier, Model

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
def small():
    """Builds a two-way ConvNet of two blocks of two channels for 8-pixel images."""

    def build(norm="batch", head="meta", way=2, width=2, channels=3):
        classifier = Classifier(ConvNet(width, 2, norm=norm), LinearHead(way))
        return Model(classifier, norm, head == "zero", (8, 8, channels))

    return build


@pytest.fixture
def episodes():
    """Draws a batch of episodes for the model of `small`."""

    def draw(tasks=2, way=2, shot=2, query=3, channels=3, seed=0):
        rng = np.random.default_rng(seed)
        support = rng.random((tasks, way, shot, 8, 8, channels))
        query_x = rng.random((tasks, way, query, 8, 8, channels))
        labels = lambda n: np.tile(np.repeat(np.arange(way, dtype=np.int32), n), (tasks, 1))  # noqa: E731
        flat = lambda x: x.reshape(tasks, -1, *x.shape[3:])  # noqa: E731
        dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
        return Episode(flat(support).astype(dtype), labels(shot), flat(query_x).astype(dtype), labels(query))

    return draw
