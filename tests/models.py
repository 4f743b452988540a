"""Tiny trained models as they lie on a disk, without the training."""

import flax.linen as nn
import jax
import numpy as np

from maml_jax import config as config_lib
from maml_jax.checkpoint import Checkpoints
from maml_jax.config import preset
from maml_jax.episode import Episode
from maml_jax.experiment.method import build_method, build_outer
from maml_jax.meta.step import init_state


def tiny_config(channels=1, **settings):
    """A model that compiles in no time; settings are fields with '__' for the dot."""
    config = preset("default")
    config.data.image_size, config.model.width, config.model.options = 16, 4, "blocks=2"
    config.task.way, config.inner.steps, config.eval.steps = 3, 2, 3
    config.train.validate_every, config.eval.checkpoint = 0, "latest"
    if channels == 3:
        config.data.name = "mini_imagenet"
    for name, value in settings.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def save_run(workdir, channels=1, **settings):
    """A work directory with a run whose weights are random; gives its configuration and its state."""
    config = tiny_config(channels, **settings)
    config_lib.check(config)
    method = build_method(config, config.task.way)
    size, way = config.data.image_size, config.task.way
    x, y = np.zeros((way, size, size, channels), np.float32), np.arange(way, dtype=np.int32)
    state = init_state(method, build_outer(config), jax.random.key(3), Episode(x, y, x, y))
    noise = np.random.default_rng(0)
    shake = lambda leaf: leaf + 0.1 * noise.random(leaf.shape, np.float32)  # noqa: E731
    state = state.replace(
        params=jax.tree.map(shake, state.params), stats=jax.tree.map(shake, state.stats), step=np.int32(7)
    )
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config_lib.to_json(config))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save("latest", 7, state)
    return config, state


class Own(nn.Module):
    """An encoder that does not belong to the library."""

    @nn.compact
    def __call__(self, x, phase):
        return nn.Dense(3)(x.reshape(len(x), -1))
