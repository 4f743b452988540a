"""Names and layouts of PyTorch, and back."""

import functools
import re

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maml_jax import tree
from maml_jax.config import default
from maml_jax.experiment.method import build_learner
from maml_jax.meta.learner import Phase
from maml_jax.nn.norm import Normalization
from parity import convert
from parity.reference import ENCODERS, ModelSpec, init_params, init_stats
from tests.helpers import assert_same

MODES = ("batch", "episodic", "global")
SIDE = 32


def build(encoder, norm="batch"):
    config = default()
    config.update_from_flattened_dict(
        {
            "model.encoder": encoder.replace("-", "_"),
            "model.width": 4,
            "model.norm": norm,
            "model.temperature": 2.0,
            "model.learn_temperature": True,
        }
    )
    return build_learner(config, 3)


@functools.cache
def shapes(encoder, norm="global"):
    """Of the parameters, and of all statistics by their collection."""
    module, image = build(encoder, norm).module, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    variables = dict(jax.eval_shape(lambda image: module.init(jax.random.key(0), image, Phase()), image))
    return variables.pop("params"), variables


def features(encoder):
    return convert.feature_shape(build(encoder), SIDE)


def numbered(like):
    """Arrays in which every entry is another number."""
    count = iter(range(10**9))
    fill = lambda leaf: np.array([next(count) for _ in range(leaf.size)], np.float32).reshape(leaf.shape)  # noqa: E731
    return jax.tree.map(fill, like)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("norm", ["episodic", "global"])  # `batch` has the same parameters, and no statistics
def test_there_and_back_is_exact(encoder, norm):
    for like in shapes(encoder, norm):
        ours = numbered(like)
        theirs = convert.to_torch(ours, features(encoder))
        back = convert.from_torch(theirs, like, features(encoder))
        assert_same(back, ours, 0)
        again = convert.to_torch(back, features(encoder))
        assert theirs.keys() == again.keys()
        assert all(np.array_equal(theirs[name], again[name]) for name in theirs)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_names_and_shapes_are_the_references(encoder):
    spec = ModelSpec(encoder, 3, 32, "global", 2.0, True, width=4)
    params = init_params(spec, torch.Generator())
    expected = params | init_stats(spec, params)
    likes = shapes(encoder)
    ours = {n: a for like in likes for n, a in convert.to_torch(numbered(like), features(encoder)).items()}
    assert {n: a.shape for n, a in ours.items()} == {n: tuple(a.shape) for n, a in expected.items()}


def test_head_and_features_are_permuted_alike():
    params, _ = shapes("convnet4")
    kernel = np.random.default_rng(0).standard_normal(params["head"]["kernel"].shape)
    maps = np.random.default_rng(1).standard_normal((5, *features("convnet4")))
    theirs = convert.to_torch({"head": {"kernel": kernel}}, features("convnet4"))["classifier.linear.weight"]
    flat = torch.from_numpy(maps.transpose(0, 3, 1, 2).copy()).flatten(1)
    np.testing.assert_allclose(F.linear(flat, torch.from_numpy(theirs.copy())), maps.reshape(5, -1) @ kernel)


def test_missing_and_misshapen_arrays_are_named():
    params, _ = shapes("convnet4")
    theirs = convert.to_torch(numbered(params), features("convnet4"))
    weight = theirs.pop("encoder.encoder.conv2.conv.weight")
    with pytest.raises(ValueError, match=r"encoder\.encoder\.conv2\.conv\.weight is missing"):
        convert.from_torch(theirs, params, features("convnet4"))
    theirs["encoder.encoder.conv2.conv.weight"] = weight[:2]
    with pytest.raises(ValueError, match=r"conv2\.conv\.weight gives .* \(3, 3, 4, 2\) instead of \(3, 3, 4, 4\)"):
        convert.from_torch(theirs, params, features("convnet4"))
    with pytest.raises(ValueError, match="no PyTorch name is known for 'encoder/block1/gain'"):
        convert.torch_name("encoder/block1/gain")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_modes_by_block(encoder):
    blocks = convert.blocks_of(encoder)
    modes = {block: MODES[i % 3] for i, block in enumerate(blocks)}
    norm = convert.norm_of(modes)
    spec = ModelSpec(encoder, norm=modes)
    for name in tree.names(shapes(encoder)[0]):
        if name.endswith("/scale"):
            assert Normalization.parse(norm).mode(name.removesuffix("/scale")) == spec.mode(convert.torch_name(name))
    assert convert.norm_of(dict.fromkeys(blocks, "global")) == "global"


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("frozen", [(), ("bn",), ("conv1",), ("layer2.conv", "classifier.linear.bias"), ("",)])
def test_frozen_strings_become_a_pattern(encoder, frozen):
    names = tree.names(shapes(encoder)[0])
    pattern = convert.fixed_of(frozen, names)
    fixed = {name for name in names if pattern and re.search(pattern, name)}
    assert fixed == {name for name in names if any(part in convert.torch_name(name) for part in frozen)}
