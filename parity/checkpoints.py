"""Checkpoints of the original PyTorch-MAML, to and from our work directories.

Its `.pth` file is a dictionary: `encoder`, `encoder_args`, `encoder_state_dict`, the same three of `classifier`, and
what training left. Names in the state dicts lack the `encoder.` and `classifier.` that `parity.convert` has in front.
"""

import os
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import torch

from maml_jax import config as config_lib
from maml_jax import tree
from maml_jax.bounded import check_zip
from maml_jax.checkpoint import KINDS, Checkpoints
from maml_jax.episode import Episode
from maml_jax.errors import ConfigError, DataError
from maml_jax.experiment.method import build_method, build_outer
from maml_jax.files import make_folder, write_whole, writing
from maml_jax.meta.step import MetaState, init_state
from maml_jax.nn.model import FlaxLearner
from maml_jax.nn.norm import Normalization
from maml_jax.tree import PyTree
from parity import convert
from parity.golden import block_of

# The original's encoders, with the channels of the first and of the last block.
_CHANNELS = {
    "convnet4": (32, 32),
    "wide-convnet4": (64, 64),
    "resnet12": (64, 512),
    "wide-resnet12": (64, 640),
    "resnet18": (64, 512),
    "wide-resnet18": (64, 640),
}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # and those of each episode, which have numbers


def import_pth(path: Path, workdir: Path, config_file: Path | None = None) -> str:
    """Makes a work directory, which `evaluate` accepts, of one of the original's checkpoints.

    Args:
      path: the `.pth` file.
      workdir: a folder that is empty or does not exist; it is whole or not at all.
      config_file: where settings that a checkpoint does not hold come from; the preset 'mini_5w1s' if not given.

    Returns:
      A sentence on what was done.

    Raises:
      DataError: the file or the folder cannot be used.
      ConfigError: the configuration cannot.
      DiskError: the folder cannot be written.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise DataError(f"{workdir} exists and is not an empty folder; give a new one")
    stored = _load(path)
    base = config_lib.from_file(config_file) if config_file else config_lib.preset("mini_5w1s")
    config = _config(path, stored, base)
    state = _state(path, stored, config)
    make_folder(workdir.parent)
    with writing(workdir):
        made = Path(tempfile.mkdtemp(prefix=f".{workdir.name}.", dir=workdir.parent))
    try:
        made.chmod(0o755)
        write_whole(made / "config.json", lambda file: file.write(config_lib.to_json(config).encode()))
        with Checkpoints(made / "checkpoints") as checkpoints:
            for kind in KINDS:
                checkpoints.save(kind, 0, state)
        os.replace(made, workdir)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return (
        f"{workdir}: {config.model.encoder}, {config.task.way}-way, {config.data.image_size} px, normalisation "
        f"{config.model.norm!r}; python launch.py evaluate --workdir {workdir}"
    )


def export_pth(workdir: Path, path: Path) -> str:
    """Writes the parameters of a run as a checkpoint that the original loads.

    Args:
      workdir: the run; `eval.checkpoint` of its configuration says which of its checkpoints.
      path: the `.pth` file, which is replaced.

    Returns:
      A sentence on what was done.

    Raises:
      DataError: the run has no checkpoint, or cannot be read.
      ConfigError: the original has no such model.
      DiskError: the file cannot be written.
    """
    config = config_lib.load(workdir / "config.json")
    name = _encoder_name(config)
    like = jax.eval_shape(lambda: fresh_state(config))
    bn_args = _bn_args(config, name, like.params)
    if not (workdir / "checkpoints").is_dir():
        raise DataError(f"{workdir} holds no checkpoints; train first, or name the folder of a run")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        try:
            state = checkpoints.restore(config.eval.checkpoint, like)
        except DataError as error:
            raise DataError(f"{error} (the original's models take images of 3 channels)") from error
    stored = _stored(config, name, bn_args, state)
    write_whole(path, lambda file: torch.save(stored, file))
    return f"{path}: {name}, {config.task.way}-way, the {config.eval.checkpoint} checkpoint of {workdir}"


def _learner(config: ml_collections.ConfigDict) -> FlaxLearner:
    return build_method(config, config.task.way).learner


def _task(config: ml_collections.ConfigDict) -> Episode:
    """The shapes of a task on images of 3 channels, as all of the original's models take."""
    size, way = config.data.image_size, config.task.way
    images, labels = jnp.zeros((way, size, size, 3)), jnp.arange(way, dtype=jnp.int32)
    return Episode(images, labels, images, labels)


def fresh_state(config: ml_collections.ConfigDict) -> MetaState:
    """The state that training starts from."""
    method = build_method(config, config.task.way)
    return init_state(method, build_outer(config), jax.random.key(config.seed), _task(config))


# Reading


def _load(path: Path) -> dict[str, Any]:
    try:
        check_zip(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes PyTorch raise
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"{path}: not a readable checkpoint: {reason}") from error
    kinds = {"encoder": str, "encoder_state_dict": dict, "classifier_args": dict, "classifier_state_dict": dict}
    if not isinstance(stored, dict):
        raise DataError(f"{path}: holds a {type(stored).__name__}, not the dictionary of PyTorch-MAML's checkpoints")
    for field, kind in kinds.items():
        if not isinstance(stored.get(field), kind):
            raise DataError(f"{path}: {field} is {'missing' if field not in stored else f'no {kind.__name__}'}")
    return stored


def _config(path: Path, stored: dict[str, Any], config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` with what a checkpoint says about its model."""
    name, head = stored["encoder"], stored["classifier_args"]
    if name not in _CHANNELS:
        raise DataError(f"{path}: encoder is {name!r}, expected one of {', '.join(_CHANNELS)}")
    weight = stored["classifier_state_dict"].get("linear.weight")
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise DataError(f"{path}: classifier_state_dict.linear.weight is missing or not a matrix")
    temperature = head.get("temp", 1.0)
    if type(temperature) not in (int, float):
        raise DataError(f"{path}: classifier_args.temp is {temperature!r}, expected a number")
    config.task.way = weight.shape[0]
    config.eval.way = weight.shape[0]
    config.data.image_size = _image_size(path, name, weight.shape[1], config.data.image_size)
    config.model.encoder = name.replace("-", "_")
    config.model.width = 0
    config.model.norm = convert.norm_of(_modes(path, stored))
    config.model.head = "meta"
    config.model.temperature = float(temperature)
    config.model.learn_temperature = "temp" in stored["classifier_state_dict"]
    config_lib.check(config)
    return config


def _image_size(path: Path, encoder: str, features: int, usual: int) -> int:
    """The side of the images: `usual` wherever that gives so many features."""
    channels = _CHANNELS[encoder][1]
    if "convnet4" not in encoder:
        side = usual // 16 if features == channels else 0
    else:
        side = round((features / channels) ** 0.5)
    if side < 1 or ("convnet4" in encoder and side * side * channels != features):
        raise DataError(f"{path}: classifier_state_dict.linear.weight has {features} columns, which no {encoder} gives")
    return usual if usual // 16 == side else 84 if side == 84 // 16 else 16 * side


def _modes(path: Path, stored: dict[str, Any]) -> dict[str, str]:
    """The mode of each block."""
    arguments = stored.get("encoder_args") or {}
    arguments = arguments.get("bn_args") if isinstance(arguments, dict) else None
    arguments = {} if arguments is None else arguments
    blocks = convert.blocks_of(stored["encoder"])
    episodic = arguments.get("episodic") or [] if isinstance(arguments, dict) else None
    if not isinstance(episodic, list | tuple) or not set(episodic) <= set(blocks):
        raise DataError(f"{path}: encoder_args.bn_args is {arguments!r}; expected episodic to list {', '.join(blocks)}")
    if not arguments.get("track_running_stats", True):  # PyTorch's default
        return dict.fromkeys(blocks, "batch")
    return {block: "episodic" if block in episodic else "global" for block in blocks}


def _state(path: Path, stored: dict[str, Any], config: ml_collections.ConfigDict) -> MetaState:
    """The state that training would start from, with the checkpoint's parameters and global statistics."""
    like = jax.eval_shape(lambda: fresh_state(config))
    params, stats = like.params, like.stats
    features = convert.feature_shape(_learner(config), config.data.image_size)
    arrays = {
        f"{part}.{name}": value.detach().to(torch.float32).numpy()
        for part in ("encoder", "classifier")
        for name, value in stored[f"{part}_state_dict"].items()
        if isinstance(value, torch.Tensor)
    }
    weights = set(map(convert.torch_name, tree.names(params)))
    unknown = [name for name in arrays if name not in weights and not name.rpartition(".")[2].startswith(_BUFFERS)]
    if unknown:
        raise DataError(f"{path}: {config.model.encoder} has no parameter {unknown[0]}")
    if "classifier.temp" in arrays:
        arrays["classifier.temp"] = arrays["classifier.temp"].reshape(-1)[:1].reshape(())
    try:
        filled = [convert.from_torch(arrays, leaves, features) for leaves in (params, stats)]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    params, stats = (jax.tree.map(jnp.asarray, leaves) for leaves in filled)
    optimizer = build_outer(config).init(params)
    return MetaState(step=jnp.int32(0), params=params, stats=stats, optimizer=optimizer)


# Writing


def _encoder_name(config: ml_collections.ConfigDict) -> str:
    """The original's name of a run's encoder."""
    encoder, width, options = config.model.encoder.replace("_", "-"), config.model.width, config.model.options
    if encoder.endswith("convnet4") and width:
        encoder = {32: "convnet4", 64: "wide-convnet4"}.get(width, encoder)
    if encoder not in _CHANNELS or width not in (0, _CHANNELS[encoder][0]) or options:
        raise ConfigError(
            f"model.encoder={config.model.encoder!r} with model.width={width}, model.options={options!r} is none of "
            f"the original's encoders, which are {', '.join(_CHANNELS)} in their own widths"
        )
    return encoder


def _bn_args(config: ml_collections.ConfigDict, encoder: str, params: PyTree) -> dict[str, Any]:
    """How the original describes the run's normalisation: running statistics or none, per episode in some blocks."""
    norm, modes = Normalization.parse(config.model.norm), {}
    for name in tree.names(params):
        layer, _, leaf = name.rpartition("/")
        if leaf == "scale":
            modes.setdefault(block_of(convert.torch_name(name)), set()).add(norm.mode(layer))
    kinds = set.union(*modes.values())
    rates, linear = config.inner.learn_rates, config.inner.precondition
    if not kinds <= {"batch", "episodic", "global"} or rates != "none" or linear != "none":
        raise ConfigError(
            f"model.norm={config.model.norm!r}, inner.learn_rates={rates!r}, inner.precondition={linear!r}: of these "
            "the original has batch, episodic and global statistics only"
        )
    if any(len(found) > 1 for found in modes.values()) or ("batch" in kinds and len(kinds) > 1):
        raise ConfigError(
            f"model.norm={config.model.norm!r} cannot be exported: the original has one mode per block, and batch "
            "statistics everywhere or nowhere"
        )
    arguments = {"track_running_stats": kinds != {"batch"}, "n_episode": config.train.tasks}
    episodic = [block for block in convert.blocks_of(encoder) if modes[block] == {"episodic"}]
    return arguments | ({"episodic": episodic} if episodic else {})


def _stored(config: ml_collections.ConfigDict, name: str, bn_args: dict[str, Any], state: MetaState) -> dict[str, Any]:
    """The dictionary that the original saves; without the state of an optimiser, which it would not find its way in."""
    learner, task = _learner(config), _task(config)
    features = convert.feature_shape(learner, config.data.image_size)
    start = jax.jit(learner.start)  # which draws no parameters to find what statistics are at first
    params, stats = start(state.params, state.stats, task.support_x, task.support_y)  # with a head, if of zeros
    arrays = convert.to_torch(params, features)
    # It also keeps the statistics that each episode of a batch left, in layers where they are the episode's.
    for buffer, array in convert.to_torch(stats, features).items():
        copies = range(bn_args["n_episode"] if block_of(buffer) in bn_args.get("episodic", ()) else 0)
        arrays |= {buffer: array} | {f"{buffer}_{i}": array for i in copies}
    parts = {part: OrderedDict() for part in ("encoder", "classifier")}
    for full, array in arrays.items():
        part, _, rest = full.partition(".")
        parts[part][rest] = torch.from_numpy(np.array(array))
    head = {"n_way": config.task.way, "in_dim": parts["classifier"]["linear.weight"].shape[1]}
    if config.model.learn_temperature or config.model.temperature != 1:
        head |= {"temp": config.model.temperature, "learn_temp": config.model.learn_temperature}
    return {
        "file": "python -m parity export",
        "config": {"dataset": config.data.name},
        "encoder": name,
        "encoder_args": {"bn_args": bn_args},
        "encoder_state_dict": parts["encoder"],
        "classifier": "logistic",
        "classifier_args": head,
        "classifier_state_dict": parts["classifier"],
        "training": {"epoch": int(state.step) // 200, "max_va": 0.0},  # its epochs are 200 batches
    }
