"""Trees of parameters by name."""

import jax

from maml_jax import tree


def test_partition_and_merge():
    params = {"encoder": {"conv": {"kernel": 1}, "norm": {"scale": 2, "bias": 3}}, "head": {"kernel": 4}}
    left, right = tree.partition(params, lambda name: "norm" in name)
    assert tree.names(left) == ["encoder/norm/bias", "encoder/norm/scale"]
    assert tree.names(right) == ["encoder/conv/kernel", "head/kernel"]
    merged = tree.merge(left, right)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert merged == params
