"""What many tests need: small models and tasks, comparison of trees, pictures, and the command line as a process."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from maml_jax import tree
from maml_jax.data.sampler import ImageTasks, TaskSpec
from maml_jax.episode import Episode
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.model import FlaxLearner, learner
from maml_jax.nn.norm import Normalization

ROOT = Path(__file__).parents[1]


def assert_same(actual, expected, tolerance=1e-12):
    """The same structure, and leaves that differ by `tolerance` at most, as such and in relation; 0: no bit differs."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    actual, expected = (tree.by_name(jax.tree.map(_numbers, part)) for part in (actual, expected))
    for name, value in actual.items():
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)
        assert value.dtype == expected[name].dtype, name


def _numbers(leaf):
    """An array, or what a random key consists of."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def differs(actual, expected):
    """Whether any leaf differs."""
    return any(np.any(np.asarray(a) != b) for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True))


def small(norm="batch", starts="meta", way=2, width=2, blocks=2, steps=0, **head) -> FlaxLearner:
    """A learner of a ConvNet for the images of `episodes`, soon compiled; `head` goes to the head."""
    encoder = ConvNet(width=width, blocks=blocks, norm=Normalization.parse(norm, steps))
    return learner(Classifier(encoder, LinearHead(way, **head)), starts=starts)


def episodes(tasks=2, way=2, shot=2, query=3, side=4, channels=2, seed=0) -> Episode:
    """A batch of tasks of random images, in double precision where that is on."""
    rng = np.random.default_rng(seed)
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32

    def part(count):
        images = rng.random((tasks, way * count, side, side, channels)).astype(dtype)
        return images, np.tile(np.repeat(np.arange(way, dtype=np.int32), count), (tasks, 1))

    return Episode(*part(shot), *part(query))


def one_task(**how) -> Episode:
    """As `episodes`, a single one."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), episodes(tasks=1, **how))


def image_tasks(split="train", side=16, classes=6, way=2, shot=1, query=2, seed=0) -> ImageTasks:
    """Tasks of classes that are a pattern and some noise, of 8 images each."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (classes, 1, side, side, 1))
    images = (patterns + rng.integers(0, 56, (classes, 8, side, side, 1))).astype(np.uint8)
    spec = TaskSpec(seed=0, split=split, way=way, shot=shot, query=query)
    return ImageTasks(spec, images.reshape(-1, side, side, 1), np.arange(classes + 1, dtype=np.int32) * 8)


def pixels(*seed, shape=(8, 8, 3)) -> np.ndarray:
    """Random uint8 pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(image, **how) -> bytes:
    """An array as a PNG file; `how` goes to Pillow."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", **how)
    return content.getvalue()


def start_python(*arguments, cwd=None, **environment) -> subprocess.Popen:
    """Starts Python with this repository on its path."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
