"""Every method's meta-gradient against the PyTorch reference's, and not by being plain MAML's."""

import functools

import jax
import numpy as np
import pytest

from parity import methods

pytestmark = pytest.mark.usefixtures("one_thread")


# Methods with parameters of their own.
WITH_PARAMETERS = {"group_rates", "lslr", "metasgd", "mamlpp", "tasknorm", "curvature", "tnet", "cavia"}


@functools.cache
def compared(name):
    """Without `jit`: the methods share most shapes, so that each operation is compiled once for all of them."""
    with jax.disable_jit():
        return methods.compare(name)


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_meta_gradient_is_the_references(name):
    errors, _ = compared(name)
    assert "grad" in errors
    assert ("stats" in errors) == (name == "per_step")
    assert max(errors.values()) <= methods.TOLERANCE, errors


@pytest.mark.parametrize("name", sorted(methods.METHODS.keys() - {"maml"}))
def test_every_method_is_one_of_its_own(name):
    (_, plain), (_, grads) = compared("maml"), compared(name)
    shared = [key for key in plain if key in grads and plain[key].shape == grads[key].shape]
    scale = max(np.abs(plain[key]).max() for key in shared)
    assert max(np.abs(plain[key] - grads[key]).max() for key in shared) > 1e-6 * scale
    own = grads.keys() - plain.keys()
    assert all(grads[key].any() for key in own)
    assert bool(own) == (name in WITH_PARAMETERS)


def test_a_wrong_method_is_caught(monkeypatch):
    wrong = methods.METHODS["fomaml"]._replace(inner={})
    monkeypatch.setitem(methods.METHODS, "fomaml", wrong)
    with jax.disable_jit():
        assert methods.compare("fomaml")[0]["grad"] > 1e-4
