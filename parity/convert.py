"""Parameters and statistics between PyTorch's names and layouts and ours, exactly, in both directions.

| PyTorch                                 | here                         | layout                               |
| --------------------------------------- | ---------------------------- | ------------------------------------ |
| `encoder.encoder.conv1.conv.weight`     | `encoder/block1/conv/kernel` | `[out, in, h, w]`; `[h, w, in, out]` |
| `encoder.encoder.conv1.bn.weight`       | `encoder/block1/norm/scale`  |                                      |
| `encoder.encoder.conv1.bn.running_mean` | `encoder/block1/norm/mean`   |                                      |
| `classifier.linear.weight`              | `head/kernel`                | `[way, c h w]`; `[h w c, way]`       |

Our statistics have the name of their collection in front, `lasting_stats/` or `batch_stats/`, which PyTorch's lack. A
convolutional feature map is flattened channels first there and channels last here, which permutes the head's rows.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from maml_jax import tree
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.model import FlaxLearner
from maml_jax.tree import PyTree

Arrays = dict[str, np.ndarray]

_COLLECTION = r"^(lasting_stats|batch_stats)/"
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Our layer's name, as a pattern, and PyTorch's.
_LAYERS = (
    (r"encoder/block(\d)/conv", r"encoder.encoder.conv\1.conv"),
    (r"encoder/block(\d)/norm", r"encoder.encoder.conv\1.bn"),
    (r"encoder/stem/conv", r"encoder.conv0.conv"),
    (r"encoder/stem/norm", r"encoder.conv0.bn"),
    (r"encoder/layer(\d)/conv(\d)", r"encoder.layer\1.conv\2"),
    (r"encoder/layer(\d)/norm(\d)", r"encoder.layer\1.bn\2"),
    (r"encoder/layer(\d)/shortcut_conv", r"encoder.layer\1.res_conv.conv"),
    (r"encoder/layer(\d)/shortcut_norm", r"encoder.layer\1.res_conv.bn"),
    (r"encoder/layer(\d)_(\d)/conv(\d)", r"encoder.layer\1.block\2.conv\3"),
    (r"encoder/layer(\d)_(\d)/norm(\d)", r"encoder.layer\1.block\2.bn\3"),
    (r"encoder/layer(\d)_(\d)/shortcut_conv", r"encoder.layer\1.block\2.res_conv.conv"),
    (r"encoder/layer(\d)_(\d)/shortcut_norm", r"encoder.layer\1.block\2.res_conv.bn"),
    (r"head", r"classifier.linear"),
)


def torch_name(name: str) -> str:
    """PyTorch's name of our parameter or statistic `name`, such as 'encoder/block1/conv/kernel'."""
    if name == "head/temperature":
        return "classifier.temp"
    layer, _, leaf = re.sub(_COLLECTION, "", name).rpartition("/")
    for ours, theirs in _LAYERS:
        match = re.fullmatch(ours, layer)
        if match and leaf in _LEAVES:
            return f"{match.expand(theirs)}.{_LEAVES[leaf]}"
    raise ValueError(f"no PyTorch name is known for {name!r}")


def blocks_of(encoder: str) -> list[str]:
    """PyTorch's names of the blocks of an encoder of PyTorch's, each of which has one normalisation mode."""
    numbered = [f"{'conv' if 'convnet4' in encoder else 'layer'}{i}" for i in range(1, 5)]
    return ["conv0", *numbered] if "resnet18" in encoder else numbered


def norm_of(modes: Mapping[str, str]) -> str:
    """`model.norm` for normalisation modes by PyTorch's names of the blocks: 'conv1', 'layer1', 'conv0' for a stem."""
    if len(set(modes.values())) == 1:
        return next(iter(modes.values()))
    *blocks, last = modes
    ours = {block: "stem" if block == "conv0" else block.replace("conv", "block") for block in blocks}
    return ", ".join([*(f"{ours[block]}={modes[block]}" for block in blocks), modes[last]])


def fixed_of(frozen: Iterable[str], names: Iterable[str]) -> str:
    """`inner.fixed` for PyTorch-MAML's `frozen`, whose strings fix all parameters that have one in their full name.

    Args:
      frozen: strings to be found in PyTorch's names.
      names: ours of all parameters; the pattern spells out those that are fixed.
    """
    fixed = [name for name in names if any(part in torch_name(name) for part in frozen)]
    return f"^({'|'.join(fixed)})$" if fixed else ""


def to_torch(leaves: PyTree, feature_shape: tuple[int, ...]) -> Arrays:
    """Arrays of a pytree of ours under PyTorch's names, in PyTorch's layouts.

    Args:
      leaves: parameters, gradients, or statistics by collection, in our structure.
      feature_shape: `(height, width, channels)` of the encoder's last map, or `(channels,)` where it is averaged.
    """
    named = ((tree.name_of(path), np.asarray(leaf)) for path, leaf in jax.tree.leaves_with_path(leaves))
    return {torch_name(name): layout_to_torch(name, array, feature_shape) for name, array in named}


def from_torch(arrays: Mapping[str, Any], like: PyTree, feature_shape: tuple[int, ...]) -> PyTree:
    """A pytree of ours from arrays under PyTorch's names and in PyTorch's layouts; undoes `to_torch`.

    Args:
      arrays: by PyTorch's names; those that `like` has no place for are left out.
      like: a pytree of arrays or shapes, to be filled.
      feature_shape: see `to_torch`.

    Raises:
      ValueError: an array is missing, or of another shape.
    """

    def fill(name, leaf):
        theirs = torch_name(name)
        if theirs not in arrays:
            raise ValueError(f"{theirs} is missing")
        array = layout_from_torch(name, np.asarray(arrays[theirs]), feature_shape)
        if array.shape != leaf.shape:
            raise ValueError(f"{theirs} gives {name} of shape {array.shape} instead of {leaf.shape}")
        return array

    return tree.map_named(fill, like)


def feature_shape(learner: FlaxLearner, side: int) -> tuple[int, ...]:
    """Shape of what an encoder gives: `(height, width, channels)` that it flattens, or `(channels,)` averaged.

    Args:
      learner: of a `Classifier`.
      side: of the images, in pixels.
    """
    encoder = learner.module.encoder
    if not isinstance(encoder, ConvNet):
        return encoder.channels[-1:]
    side //= 2**encoder.blocks
    return side, side, encoder.width


def layout_to_torch(name: str, array: np.ndarray, feature_shape: tuple[int, ...]) -> np.ndarray:
    """An array of ours, of this name, in PyTorch's layout."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if name == "head/kernel":
        maps = array.reshape(*feature_shape, -1)
        return np.moveaxis(maps, (-1, -2), (0, 1)).reshape(maps.shape[-1], -1)
    return array


def layout_from_torch(name: str, array: np.ndarray, feature_shape: tuple[int, ...]) -> np.ndarray:
    """Undoes `layout_to_torch`."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if name == "head/kernel":
        *space, channels = feature_shape
        maps = array.reshape(-1, channels, *space)
        return np.moveaxis(maps, (0, 1), (-1, -2)).reshape(-1, maps.shape[0])
    return array
