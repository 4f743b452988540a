"""Golden cases: recorded outputs of the original PyTorch-MAML, and how far other outputs are from them.

A case is one `.npz` file: a JSON string `spec`, from which parameters and images are drawn anew, and the arrays that
the original computed from them (see `parity.golden_file`). Names and layouts are PyTorch's: images
`[episodes, images, 3, height, width]`, convolutions `[out, in, kh, kw]`.

NumPy only: the PyTorch and the JAX side replay the same cases.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]

CHANNELS = {
    "convnet4": (32, 32, 32, 32),
    "wide-convnet4": (64, 64, 64, 64),
    "resnet12": (64, 128, 256, 512),
    "wide-resnet12": (64, 160, 320, 640),
}
# The largest error, as `compare` reports it, with which a replay passes; for quantities not named, `default`.
TOLERANCE = {
    "float64": {"default": 1e-9, "outer_losses": 1e-7, "outer_final": 1e-7},
    "float32": {"default": 1e-4, "grad": 1e-3, "gradnorm": 1e-3, "outer_losses": 1e-3, "outer_final": 1e-3},
}


@dataclass(frozen=True)
class InnerArgs:
    """The inner loop; parameters whose name contains a `frozen` string are not adapted."""

    n_step: int
    encoder_lr: float
    classifier_lr: float
    momentum: float
    weight_decay: float
    first_order: bool
    frozen: tuple[str, ...]
    reset_classifier: bool


@dataclass(frozen=True)
class OuterArgs:
    """The outer optimiser (`adam`, `sgd` or `rmsprop`) and the number of steps recorded."""

    name: str
    lr: float
    weight_decay: float
    steps: int


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One case: what to run, on what, and what came out.

    `recorded` keeps the file's names: `logits_train` and `logits_eval` `[episodes, way * query, way]`, `loss_train`
    `[]`, `grad/NAME`, `gradnorm/NAME`, `buffer/NAME`; with `outer`, `outer_losses` `[steps]` and `outer_final/NAME`.
    """

    name: str
    encoder: str
    norm: dict[str, str]  # mode of each block of the encoder: `batch`, `episodic` or `global`
    temp: float  # factor on the logits
    learn_temp: bool  # the factor is the parameter `classifier.temp`
    inner: InnerArgs
    eval_n_step: int  # inner steps behind `logits_eval`
    outer: OuterArgs | None
    n_way: int
    n_shot: int
    n_query: int
    n_episode: int
    image_size: int
    dtype: str  # `float64` or `float32`, of parameters and images too
    seed: int
    sample: int  # entries kept of a longer gradient or final weight
    params: Arrays  # in the original's order
    support_x: np.ndarray  # [episodes, way * shot, 3, image_size, image_size]
    support_y: np.ndarray  # [way * shot], the same in every episode
    query_x: np.ndarray  # [episodes, way * query, 3, image_size, image_size]
    query_y: np.ndarray  # [way * query]
    recorded: Arrays
    width: int = 0  # channels of the encoder's first block; 0, as in every file, for its own


def block_of(name: str) -> str:
    """The block of the encoder that a parameter belongs to; ConvNet4's blocks lie a level deeper than ResNet-12's."""
    return name.removeprefix("encoder.").removeprefix("encoder.").split(".")[0]


def sampled(array: np.ndarray, sample: int) -> np.ndarray:
    """The entries of `array` that a golden file keeps: all, `[size]`, or `sample` of them at equal distances."""
    flat = np.ravel(array)
    return flat if flat.size <= sample else flat[np.arange(sample) * (flat.size // sample)]


def tree_error(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Largest absolute difference in a tree over its largest absolute expected entry.

    One scale for all arrays, because some are zero but for rounding: a convolution's bias has no gradient if the
    batch's mean is subtracted next. NaN on either side gives NaN, which no tolerance admits.

    Raises:
        ValueError: names or shapes differ.
    """
    if actual.keys() != expected.keys():
        raise ValueError(f"on one side only: {', '.join(sorted(actual.keys() ^ expected.keys()))}")
    for name in expected:
        if np.shape(actual[name]) != np.shape(expected[name]):
            raise ValueError(f"{name}: shape {np.shape(actual[name])} instead of {np.shape(expected[name])}")
    worst = np.max([np.max(np.abs(np.subtract(actual[name], expected[name]))) for name in expected])
    scale = np.max([np.max(np.abs(array)) for array in expected.values()])
    return float(worst / scale) if scale != 0 else (0.0 if worst == 0 else math.inf)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected entry: `tree_error` of one array."""
    return tree_error({"array": actual}, {"array": expected})


def as_recorded(outputs: Mapping[str, np.ndarray], sample: int) -> Arrays:
    """The arrays that a golden file keeps of a run's whole `outputs` (see `compare`)."""
    kept = {n: sampled(a, sample) if n.startswith(("grad/", "outer_final/")) else a for n, a in outputs.items()}
    norms = {n: np.linalg.norm(np.ravel(a)) for n, a in outputs.items() if n.startswith("grad/")}
    return kept | {name.replace("grad/", "gradnorm/", 1): norm for name, norm in norms.items()}


def compare(case: GoldenCase, actual: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Errors of a replay by quantity (`logits_train`, `grad`, ...), to be held against `TOLERANCE[case.dtype]`.

    Args:
        case: the case that was replayed.
        actual: the replay's arrays under the names of `case.recorded`, in PyTorch's layouts and not sampled; without
            the norms, which are those of `grad/NAME`.

    Raises:
        ValueError: an array is missing, unexpected or of another shape.
    """
    kept = as_recorded(actual, case.sample)
    if kept.keys() != case.recorded.keys():
        raise ValueError(f"{case.name}: on one side only: {', '.join(sorted(kept.keys() ^ case.recorded.keys()))}")
    errors, noise = {}, _noise(case)
    for quantity in dict.fromkeys(name.split("/")[0] for name in case.recorded):
        names = [name for name in case.recorded if name.split("/")[0] == quantity and name not in noise]
        errors[quantity] = tree_error({n: kept[n] for n in names}, {n: case.recorded[n] for n in names})
    return errors


def _noise(case: GoldenCase) -> set[str]:
    """Final weights that are no result: biases whose gradient is only rounding, magnified by the optimiser.

    Batch moments cancel a bias before them. Adam and RMSProp divide a gradient by its size, so that such a bias takes
    full steps in random directions unless its gradient is far below their epsilon of 1e-8, as it is in float64.
    """
    magnified = case.outer is not None and case.outer.name != "sgd" and case.dtype == "float32"
    biases = [name for name in case.params if magnified and name.endswith("conv.bias")]
    return {f"outer_final/{name}" for name in biases if case.norm[block_of(name)] == "batch"}
