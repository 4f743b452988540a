"""Names and layouts of PyTorch, and back."""

import re

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maml_jax import tree
from maml_jax.nn import model
from maml_jax.nn.norm import Normalization
from parity import convert
from parity.reference import ENCODERS, ModelSpec, init_params, init_stats

MODES = ("batch", "episodic", "global")


def build(encoder, norm="batch", size=32):
    return model.build(encoder.replace("-", "_"), 4, norm, "meta", 3, (size, size, 3), 2.0, True)


def shapes(m):
    return jax.eval_shape(m.init, jax.random.key(0))


def numbered(like):
    """Arrays in which every entry is another number."""
    count = iter(range(10**9))
    fill = lambda leaf: np.array([next(count) for _ in range(leaf.size)], np.float32).reshape(leaf.shape)  # noqa: E731
    return jax.tree.map(fill, like)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("norm", MODES)
def test_there_and_back_is_exact(encoder, norm):
    m = build(encoder, norm)
    params, _ = shapes(m)
    stats = jax.eval_shape(lambda: m.episode_stats(m.init(jax.random.key(0))[1]))
    features = convert.feature_shape(m)
    for like in (params, stats):
        ours = numbered(like)
        theirs = convert.to_torch(ours, features)
        back = convert.from_torch(theirs, like, features)
        jax.tree.map(np.testing.assert_array_equal, back, ours)
        again = convert.to_torch(back, features)
        assert theirs.keys() == again.keys()
        assert all(np.array_equal(theirs[name], again[name]) for name in theirs)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_names_and_shapes_are_the_references(encoder):
    m = build(encoder, "global")
    spec = ModelSpec(encoder, 3, 32, "global", 2.0, True, width=4)
    params = init_params(spec, torch.Generator())
    expected = params | init_stats(spec, params)
    features = convert.feature_shape(m)
    ours = {n: a for like in shapes(m) for n, a in convert.to_torch(numbered(like), features).items()}
    assert {n: a.shape for n, a in ours.items()} == {n: tuple(a.shape) for n, a in expected.items()}


def test_head_and_features_are_permuted_alike():
    m = build("convnet4")
    kernel = np.random.default_rng(0).standard_normal(shapes(m)[0]["head"]["kernel"].shape)
    maps = np.random.default_rng(1).standard_normal((5, *convert.feature_shape(m)))
    theirs = convert.to_torch({"head": {"kernel": kernel}}, convert.feature_shape(m))["classifier.linear.weight"]
    flat = torch.from_numpy(maps.transpose(0, 3, 1, 2).copy()).flatten(1)
    np.testing.assert_allclose(F.linear(flat, torch.from_numpy(theirs.copy())), maps.reshape(5, -1) @ kernel)


def test_missing_and_misshapen_arrays_are_named():
    m = build("convnet4")
    params, _ = shapes(m)
    theirs = convert.to_torch(numbered(params), convert.feature_shape(m))
    weight = theirs.pop("encoder.encoder.conv2.conv.weight")
    with pytest.raises(ValueError, match=r"encoder\.encoder\.conv2\.conv\.weight is missing"):
        convert.from_torch(theirs, params, convert.feature_shape(m))
    theirs["encoder.encoder.conv2.conv.weight"] = weight[:2]
    with pytest.raises(ValueError, match=r"conv2\.conv\.weight gives .* \(3, 3, 4, 2\) instead of \(3, 3, 4, 4\)"):
        convert.from_torch(theirs, params, convert.feature_shape(m))
    with pytest.raises(ValueError, match="no PyTorch name is known for 'encoder/block1/gain'"):
        convert.torch_name("encoder/block1/gain")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_modes_by_block(encoder):
    blocks = convert.blocks_of(encoder)
    modes = {block: MODES[i % 3] for i, block in enumerate(blocks)}
    norm = convert.norm_of(modes)
    spec = ModelSpec(encoder, norm=modes)
    for name in tree.names(shapes(build(encoder))[0]):
        if name.endswith("/scale"):
            assert Normalization.parse(norm).mode(name.removesuffix("/scale")) == spec.mode(convert.torch_name(name))
    assert convert.norm_of(dict.fromkeys(blocks, "global")) == "global"


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("frozen", [(), ("bn",), ("conv1",), ("layer2.conv", "classifier.linear.bias"), ("",)])
def test_frozen_strings_become_a_pattern(encoder, frozen):
    names = tree.names(shapes(build(encoder))[0])
    pattern = convert.fixed_of(frozen, names)
    fixed = {name for name in names if pattern and re.search(pattern, name)}
    assert fixed == {name for name in names if any(part in convert.torch_name(name) for part in frozen)}
