"""Testing a model on another data set than it was trained on: what stays the model's, and what is the data's."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maml_jax import tree
from maml_jax.config.fields import BY_NAME, default_of
from maml_jax.experiment.method import build_method

_OF_THE_DATA = ("dir", "split", "split_seed", "class_depth", "skip_small")
"""Fields of `config.data` that mean something else for another data set."""


def for_data(config: ml_collections.ConfigDict, trained: ml_collections.ConfigDict, parameters: dict[str, np.ndarray]):
    """A configuration to test a model under, which was trained on another data set perhaps.

    If so, fields that say where and how the images of the trained one were found go back to their defaults, unless they
    were set anew; and images get the channels that the model was trained for.

    Args:
      config: what is asked for: the trained configuration with some fields changed.
      trained: the configuration that the model was trained under.
      parameters: of the model, by name.
    """
    if config.data.name == trained.data.name:
        return config
    changed = config.copy_and_resolve_references()
    for field in _OF_THE_DATA:
        if config.data[field] == trained.data[field]:
            changed.data[field] = default_of(f"data.{field}")
    if config.data.channels == "auto":
        changed.data.channels = trained_channels(trained, parameters)
    return changed


def trained_channels(trained: ml_collections.ConfigDict, parameters: dict[str, np.ndarray]) -> str:
    """How many channels the images have that a model was trained for: '1' or '3', or 'auto' if there is no telling.

    Args:
      trained: the configuration that the model was trained under.
      parameters: of the model, by name.
    """
    if trained.data.channels != "auto":
        return trained.data.channels
    learner, side = build_method(trained, trained.task.way).learner, trained.data.image_size
    fitting = []
    for channels in (1, 3):
        images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        wanted = tree.by_name(jax.eval_shape(learner.init, jax.random.key(0), images)[0])
        if all(parameters[name].shape == leaf.shape for name, leaf in wanted.items() if name in parameters):
            fitting.append(str(channels))
    return fitting[0] if len(fitting) == 1 else "auto"


def anywhere(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration without what is about the machine that a model was trained on: its folders and its devices."""
    config = config.copy_and_resolve_references()
    local = [name for name in BY_NAME if name.startswith("parallel.") or name in ("data.dir", "data.cache_dir")]
    config.update_from_flattened_dict({name: default_of(name) for name in local})
    return config
