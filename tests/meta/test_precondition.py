"""Preconditioned inner steps: Meta-Curvature, and warps between layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import tree
from maml_jax.meta.inner import InnerLoop, adapt, all_but, sgd
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.outer import Maml
from maml_jax.meta.precondition import Curvature
from maml_jax.meta.reptile import Reptile
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.head import LinearHead
from maml_jax.nn.model import learner
from tests.helpers import assert_same, episodes, one_task, small
from tests.meta.test_outer import along, dot, gradient, random_like

pytestmark = pytest.mark.usefixtures("x64")

INNER = InnerLoop(sgd(0.3, 0.5, 0.01), all_but("norm"), precondition=Curvature())


def start(model, inner, task=None):
    return Maml(model, inner, 2).init(jax.random.key(0), task or one_task())


def adapted(model, inner, params, stats, task, steps=2):
    return adapt(model, inner, params, stats, task.support_x, task.support_y, steps, True)[0]


def test_it_starts_as_plain_descent():
    """With matrices of each mode of a kernel, a factor for each element of a vector, and none for what stays fixed."""
    model, task = small(blocks=1), one_task()
    params, stats = start(model, INNER)
    shapes = {name: leaf.shape for name, leaf in tree.by_name(params["precondition"]).items()}
    conv, head = "encoder/block1/conv", "head"
    sizes = {f"{conv}/kernel/window": (9, 9), f"{conv}/kernel/in": (2, 2), f"{conv}/kernel/out": (2, 2)}
    sizes |= {f"{conv}/bias/scale": (2,), f"{head}/bias/scale": (2,)}
    assert shapes == sizes | {f"{head}/kernel/in": (8, 8), f"{head}/kernel/out": (2, 2)}
    model_parts = {name: params[name] for name in ("encoder", "head")}
    plain = dataclasses.replace(INNER, precondition=None)
    assert_same(adapted(model, INNER, params, stats, task), adapted(model, plain, model_parts, stats, task))


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 3), (2, 3, 4), (4,), ()])
def test_a_gradient_is_multiplied_along_every_mode(shape):
    """As one large matrix, the Kronecker product of all, would do it."""
    rng = np.random.default_rng(0)
    leaf, curvature = jnp.asarray(rng.standard_normal(shape)), Curvature()
    matrices = curvature.init({"w": leaf})
    matrices = jax.tree.map(lambda m: jnp.asarray(rng.standard_normal(m.shape)), matrices)
    m = matrices["w"]
    whole = jnp.diag(m["scale"].ravel()) if "scale" in m else jnp.kron(m["in"], m["out"])
    whole = jnp.kron(m["window"], whole) if "window" in m else whole
    assert_same(curvature.apply(matrices, {"w": leaf})["w"], (whole @ leaf.ravel()).reshape(shape))


def test_it_is_meta_learned():
    """Its derivative is that of finite differences."""
    model, tasks = small(blocks=1), episodes()
    method = Maml(model, INNER, 3)
    params, stats = start(model, INNER)
    params = jax.tree.map(lambda p, d: p + 0.1 * d, params, random_like(params, 1))
    grads, _ = gradient(method, params, stats, tasks)
    direction = jax.tree.map(jnp.zeros_like, params) | {"precondition": random_like(params["precondition"], 0)}
    np.testing.assert_allclose(dot(grads, direction), along(method, params, stats, tasks, direction), rtol=1e-5)
    assert all(jnp.any(g) for name, g in tree.by_name(grads["precondition"]).items() if "conv/bias" not in name)


def test_what_takes_no_derivative_through_steps_refuses_it():
    with pytest.raises(ValueError, match="no derivative by which precondition could be learned"):
        Reptile(small(), INNER, steps=2)


def warped(warp=True, blocks=1):
    return learner(Classifier(ConvNet(width=3, blocks=blocks, warp=warp), LinearHead(2)))


def test_a_warp_is_a_linear_layer_and_nothing_at_first():
    """Convolved and then mapped channel by channel, it gives the same as the one convolution it is."""
    task, phase = one_task(), Phase(Pass.SUPPORT, True)
    params, stats = warped(blocks=2).init(jax.random.key(0), task.support_x)
    model_parts = jax.tree.map(lambda p: p + 0.1, params)
    plain = {name: leaf for name, leaf in tree.by_name(params).items() if "warp" not in name}
    without, _ = warped(False, 2).init(jax.random.key(0), task.support_x)
    assert plain.keys() == tree.by_name(without).keys()
    same = tree.map_named(lambda name, _: plain[name], without)
    outputs = [
        m.apply(p, stats, task.support_x, phase)[0] for m, p in ((warped(blocks=2), params), (warped(False, 2), same))
    ]
    assert_same(*outputs)
    conv = model_parts["encoder"]["block1"]["conv"]
    merged = jax.tree.map(lambda p: p, model_parts)
    merged["encoder"]["block1"]["conv"] = {
        "kernel": jnp.einsum("hwio,on->hwin", conv["kernel"], conv["warp"]),
        "bias": conv["bias"] @ conv["warp"],
        "warp": jnp.eye(3),
    }
    outputs = [warped(blocks=2).apply(p, stats, task.support_x, phase)[0] for p in (model_parts, merged)]
    assert_same(*outputs)


def test_a_fixed_warp_preconditions_the_steps_of_its_kernel():
    """K T moves by −α G Tᵀ T, where G is the gradient of K T."""
    task, inner = one_task(), InnerLoop(sgd(0.3), all_but("warp$|norm"))
    model, plain = warped(), warped(False)
    params, stats = model.init(jax.random.key(0), task.support_x)
    rng = np.random.default_rng(0)
    conv = params["encoder"]["block1"]["conv"]
    warp = conv["warp"] + 0.3 * rng.standard_normal((3, 3))
    params["encoder"]["block1"]["conv"] = conv | {"warp": warp}
    merged = jax.tree.map(lambda p: p, params)
    merged["encoder"]["block1"]["conv"] = {"kernel": conv["kernel"] @ warp, "bias": conv["bias"] @ warp}

    def loss(params):
        logits, _ = plain.apply(params, stats, task.support_x, Phase(Pass.SUPPORT, True))
        return plain.loss(logits, task.support_y)

    g = jax.grad(loss)(merged)["encoder"]["block1"]["conv"]["kernel"]
    after = adapted(model, inner, params, stats, task, 1)["encoder"]["block1"]["conv"]
    assert_same(after["warp"], warp, 0)
    assert_same(after["kernel"] @ warp, merged["encoder"]["block1"]["conv"]["kernel"] - 0.3 * g @ warp.T @ warp)
