"""Reading golden files: checked as a whole, so that a case is used entirely or refused."""

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from maml_jax.bounded import read_npz
from maml_jax.errors import DataError
from parity import fields
from parity.fields import GoldenError
from parity.golden import CHANNELS, TOLERANCE, Arrays, GoldenCase, InnerArgs, OuterArgs, block_of

_SPEC = {
    **dict.fromkeys(("bn_args", "classifier_args", "inner_args", "outer"), fields.OBJECT),
    **dict.fromkeys(("n_way", "n_shot", "n_query", "n_episode", "sample"), fields.COUNT),
    **dict.fromkeys(("eval_n_step", "seed"), fields.INDEX),
    "name": fields.TEXT,
    "params": fields.LIST,
    # The published formula is for 84 pixels; stretching its 6 x 6 grid is the one way to read it for other sizes.
    "image_size": ("a multiple of 6, at least 18", lambda value: type(value) is int and value >= 18 and value % 6 == 0),
    "encoder": fields.one_of(CHANNELS),
    "dtype": fields.one_of(TOLERANCE),
}
_NORM = {"track_running_stats": fields.FLAG, "episodic": fields.TEXTS}
_HEAD = {"temp": fields.NUMBER, "learn_temp": fields.FLAG}
_INNER = {
    **dict.fromkeys(("encoder_lr", "classifier_lr", "momentum", "weight_decay"), fields.AMOUNT),
    **dict.fromkeys(("first_order", "reset_classifier"), fields.FLAG),
    "n_step": fields.INDEX,
    "frozen": fields.TEXTS,
}
_OUTER = {
    "name": fields.one_of(("adam", "sgd", "rmsprop")),
    "lr": fields.AMOUNT,
    "weight_decay": fields.AMOUNT,
    "steps": fields.COUNT,
}
_MOST_VALUES = 2**28  # of all images, 2 GiB in double precision
_PARAM = {"name": fields.TEXT, "shape": fields.LIST, "offset": fields.NUMBER, "scale": fields.AMOUNT}


def read_case(path: str | os.PathLike[str]) -> GoldenCase:
    """Reads a golden file and draws its parameters and images.

    Raises:
        GoldenError: the file cannot be read, or a field or array is missing, unknown or unusable.
    """
    try:
        recorded = read_npz(path)
    except DataError as error:
        raise GoldenError(error.facts) from None
    text = recorded.pop("spec", np.zeros(0))
    if text.shape != () or text.dtype.kind != "U":
        raise GoldenError(f"{path}: array 'spec' is missing or not a string")
    try:
        values = json.loads(text.item())
    except ValueError as error:
        raise GoldenError(f"{path}: spec is not JSON: {error}") from None
    where = f"{path}: spec"
    spec = fields.checked(where, values, _SPEC, name=os.path.basename(path))
    spec["norm"] = _norm_modes(f"{where}.bn_args", spec.pop("bn_args"), spec["encoder"])
    spec |= fields.checked(f"{where}.classifier_args", spec.pop("classifier_args"), _HEAD, temp=1.0, learn_temp=False)
    inner = fields.checked(f"{where}.inner_args", spec.pop("inner_args"), _INNER)
    spec["inner"] = InnerArgs(**inner | {"frozen": tuple(inner["frozen"])})
    if spec["outer"] is not None:
        spec["outer"] = OuterArgs(**fields.checked(f"{where}.outer", spec["outer"], _OUTER, weight_decay=0.0))
    if spec["n_episode"] > 1 and "global" in spec["norm"].values():
        raise GoldenError(
            f"{where}.n_episode is {spec['n_episode']}, expected 1 where layers keep global statistics: the original "
            "overwrites them episode by episode while earlier graphs need them, and ours averages them"
        )
    images = spec["n_episode"] * spec["n_way"] * (spec["n_shot"] + spec["n_query"])
    if images * 3 * spec["image_size"] ** 2 > _MOST_VALUES:
        raise GoldenError(f"{where} asks for {images:,} images of {spec['image_size']} pixels: more than can be drawn")
    spec["params"] = _draw_params(f"{where}.params", spec)
    case = GoldenCase(**spec, **_draw_images(spec), recorded=recorded)
    check_recorded(path, case)
    return case


def _norm_modes(where: str, values: Any, encoder: str) -> dict[str, str]:
    """Mode of each block. The original keeps statistics per episode where a block's own name is listed, exactly."""
    args = fields.checked(where, values, _NORM, episodic=[])
    blocks = [f"{'conv' if 'convnet4' in encoder else 'layer'}{i}" for i in range(1, 5)]
    if not set(args["episodic"]) <= set(blocks):
        raise GoldenError(f"{where}.episodic is {args['episodic']}, expected some of {', '.join(blocks)}")
    if not args["track_running_stats"]:
        return dict.fromkeys(blocks, "batch")
    return {block: "episodic" if block in args["episodic"] else "global" for block in blocks}


def parameter_shapes(encoder: str, n_way: int, image_size: int, learn_temp: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of the original's parameters by name, in its order; for ConvNet4 the head's width depends on the image."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_norm(conv: str, norm: str, c_in: int, c_out: int, kernel: int = 3) -> None:
        shapes[f"{conv}.weight"] = (c_out, c_in, kernel, kernel)
        if "convnet4" in encoder:
            shapes[f"{conv}.bias"] = (c_out,)
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (c_out,)

    for i, (c_in, c_out) in enumerate(pairwise((3, *CHANNELS[encoder])), start=1):
        if "convnet4" in encoder:
            conv_norm(f"encoder.encoder.conv{i}.conv", f"encoder.encoder.conv{i}.bn", c_in, c_out)
            continue
        block = f"encoder.layer{i}"
        for j in (1, 2, 3):
            conv_norm(f"{block}.conv{j}", f"{block}.bn{j}", c_in if j == 1 else c_out, c_out)
        conv_norm(f"{block}.res_conv.conv", f"{block}.res_conv.bn", c_in, c_out, kernel=1)
    width = CHANNELS[encoder][-1] * ((image_size // 16) ** 2 if "convnet4" in encoder else 1)
    if learn_temp:
        shapes["classifier.temp"] = ()
    return shapes | {"classifier.linear.weight": (n_way, width), "classifier.linear.bias": (n_way,)}


def _draw_params(where: str, spec: Mapping[str, Any]) -> Arrays:
    """Parameters, each from a random stream of its own, numbered by its place in the file's list."""
    shapes = parameter_shapes(spec["encoder"], spec["n_way"], spec["image_size"], spec["learn_temp"])
    params: Arrays = {}
    for i, values in enumerate(spec["params"]):
        args = fields.checked(f"{where}[{i}]", values, _PARAM)
        name = args["name"]
        if name not in shapes or name in params or args["shape"] != list(shapes[name]):
            raise GoldenError(f"{where}[{i}] is {name} {args['shape']}, which is unknown, misshapen or listed twice")
        noise = np.random.default_rng([spec["seed"], i]).standard_normal(shapes[name])
        params[name] = np.asarray(args["offset"] + args["scale"] * noise, spec["dtype"])
    if params.keys() != shapes.keys():
        raise GoldenError(f"{where} lacks {', '.join(sorted(shapes.keys() - params.keys()))}")
    return params


def _draw_images(spec: Mapping[str, Any]) -> Arrays:
    """Support and query images: a coarse pattern per class, with noise per image; and their labels, in class order."""
    size, episodes, way, seed = (spec[name] for name in ("image_size", "n_episode", "n_way", "seed"))
    pattern = np.random.default_rng([seed, 90000]).random((episodes, way, 3, 6, 6))
    pattern = np.kron(pattern, np.ones((size // 6, size // 6)))
    drawn = {}
    for stream, kind, count in ((90001, "support", spec["n_shot"]), (90002, "query", spec["n_query"])):
        noise = np.random.default_rng([seed, stream]).random((episodes, way, count, 3, size, size))
        images = 0.6 * pattern[:, :, None] + 0.4 * noise
        drawn[f"{kind}_x"] = images.reshape(episodes, way * count, 3, size, size).astype(spec["dtype"])
        drawn[f"{kind}_y"] = np.repeat(np.arange(way), count)
    return drawn


def check_recorded(path: str | os.PathLike[str], case: GoldenCase) -> None:
    """Refuses a file whose arrays are not exactly those that its spec calls for."""
    logits = (case.n_episode, case.n_way * case.n_query, case.n_way)
    expected = {"logits_train": logits, "loss_train": (), "logits_eval": logits}
    for name, value in case.params.items():
        expected |= {f"grad/{name}": (min(value.size, case.sample),), f"gradnorm/{name}": ()}
        layer, _, kind = name.rpartition(".")
        mode = case.norm.get(block_of(name), "batch")
        if mode != "batch" and kind == "weight" and value.ndim == 1:  # only normalisation has such weights
            # An episodic layer's own statistics stay as they were; beside them stand those that each episode left.
            episodes = range(case.n_episode if mode == "episodic" else 0)
            for buffer in (f"buffer/{layer}.running_mean", f"buffer/{layer}.running_var"):
                expected |= dict.fromkeys((buffer, *(f"{buffer}_{i}" for i in episodes)), value.shape)
    if case.outer is not None:
        expected["outer_losses"] = (case.outer.steps,)
        expected |= {f"outer_final/{n}": (min(value.size, case.sample),) for n, value in case.params.items()}
    for name in sorted(expected.keys() ^ case.recorded.keys()):
        raise GoldenError(f"{path}: array {name!r} is {'missing' if name in expected else 'unknown'}")
    for name, array in case.recorded.items():
        if array.shape != expected[name] or array.dtype.kind != "f":
            raise GoldenError(f"{path}: array {name!r} is {array.dtype}{array.shape}, expected floats {expected[name]}")
        if not np.isfinite(array).all():
            raise GoldenError(f"{path}: array {name!r} is not finite")
