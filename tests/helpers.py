"""What many tests need: small models and tasks, comparison of trees, pictures, and the command line as a process."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from maml_jax import tree
from maml_jax.data.sampler import ImageTasks, TaskSpec
from maml_jax.episode import Episode
from maml_jax.experiment import Experiment, Testing, Training
from maml_jax.meta.inner import InnerLoop, sgd
from maml_jax.meta.outer import Maml
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.model import FlaxLearner, learner
from maml_jax.nn.norm import Normalization

ROOT = Path(__file__).parents[1]
TINY = [  # a run of seconds
    "--config.model.width=2",
    "--config.data.image_size=16",
    "--config.train.steps=4",
    "--config.train.tasks=2",
    "--config.train.report_every=2",
    "--config.train.validate_every=2",
    "--config.train.validation_tasks=5",
    "--config.train.checkpoint_every=2",
    "--config.eval.tasks=30",
    "--config.eval.query=2",
    "--config.eval.steps=1",
    "--config.task.query=2",
]


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


def episodes(tasks=2, way=2, shot=2, query=3, side=4, channels=2) -> Episode:
    """A batch of tasks of random images, in double precision where that is on."""
    return jax.tree.map(lambda *x: np.stack(x), *(one_task(i, way, shot, query, side, channels) for i in range(tasks)))


def one_task(number=0, way=2, shot=2, query=3, side=4, channels=2) -> Episode:
    """A task of `episodes`."""
    rng = np.random.default_rng(number)
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32

    def part(count):
        images = rng.random((way * count, side, side, channels)).astype(dtype)
        return jnp.asarray(images), jnp.repeat(jnp.arange(way, dtype=jnp.int32), count)

    return Episode(*part(shot), *part(query))


def image_tasks(split="train", side=4, classes=6, way=2, shot=1, query=2) -> ImageTasks:
    """Tasks of classes that are a pattern and some noise, of 8 images each."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (classes, 1, side, side, 1))
    images = (patterns + rng.integers(0, 56, (classes, 8, side, side, 1))).astype(np.uint8)
    spec = TaskSpec(seed=0, split=split, way=way, shot=shot, query=query)
    return ImageTasks(spec, images.reshape(-1, side, side, 1), np.arange(classes + 1, dtype=np.int32) * 8)


def experiment(model=None, tasks=None, optimizer=None, testing=None, **training) -> Experiment:
    """A small experiment on `image_tasks`, or on tasks by split; the other arguments are changes of its parts."""
    splits = ("train", "val", "test")
    tasks = tasks or {split: image_tasks(split) for split in splits}
    method = Maml(model or small(blocks=1), InnerLoop(sgd(0.1)), steps=1)
    when = Training(
        steps=12,
        tasks=2,
        tasks_at_once=1,
        report_every=3,
        validate_every=4,
        validation_tasks=10,
        checkpoint_every=5,
    )
    test = Testing(split="test", tasks=10, steps=1, checkpoint="best", by_step=False, facts={}, data={})
    return Experiment(
        seed=0,
        method=method,
        tested=method,
        optimizer=optimizer or optax.adam(1e-2),
        tasks=tasks["train"],
        eval_tasks=tasks,
        training=when._replace(**training),
        testing=test._replace(**testing or {}),
        devices=jax.devices()[:2],
        backend="shard_map",
        stores={},
    )


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
