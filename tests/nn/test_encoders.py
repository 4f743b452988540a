"""Encoders by name: shapes, parameters, and their own hyper-parameters."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maml_jax import tree
from maml_jax.errors import ConfigError
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.convnet import ConvNet
from maml_jax.nn.encoders import ENCODERS, encoder
from maml_jax.nn.head import LinearHead
from maml_jax.nn.norm import Normalization
from maml_jax.nn.resnet import ResNet12, ResNet18

SUPPORT = Phase(Pass.SUPPORT, True)


def shapes(module, side, channels=3, batch=2):
    """Of variables and outputs, for images of a size."""
    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, SUPPORT), x)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, Phase()), variables, x)


@pytest.mark.parametrize(
    ("name", "width", "count"),
    [
        ("convnet4", 0, 32_901),
        ("convnet4", 64, 121_093),
        ("wide_convnet4", 0, 121_093),
        ("resnet12", 0, 7_999_365),
        ("wide_resnet12", 0, 12_427_525),
    ],
)
def test_parameter_count_of_the_original(name, width, count):
    variables, _ = shapes(Classifier(encoder(name, width), LinearHead(5)), 84)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert variables.keys() == {"params"}


@pytest.mark.parametrize(("side", "channels"), [(16, 1), (28, 1), (35, 3), (84, 3)])
def test_any_image_size(side, channels):
    assert shapes(ConvNet(4), side, channels)[1].shape == (2, 4 * (side // 16) ** 2)


@pytest.mark.parametrize("name", sorted(ENCODERS.keys() - {"mlp"}))
def test_every_encoder_at_an_odd_size_and_a_small_width(name):
    variables, features = shapes(encoder(name, 4, "episodic"), 35, 1)
    norms = [n for n in tree.names(variables["params"]) if n.endswith("scale")]
    assert len(norms) == len([n for n in tree.names(variables["batch_stats"]) if n.endswith("mean")])
    assert jax.tree.leaves(variables["params"])[0].shape[-1] == 4
    assert features.shape == (2, 16 if name.startswith("convnet") or name == "wide_convnet4" else features.shape[1])


def test_names_of_parameters():
    """Which checkpoints and the port of the original's weights rely on."""
    names = lambda module: tree.names(shapes(module, 16)[0]["params"])  # noqa: E731
    block = ["conv/bias", "conv/kernel", "norm/bias", "norm/scale"]
    assert names(ConvNet(2, 1)) == [f"block1/{n}" for n in block]
    layers = ["conv1/kernel", "conv2/kernel", "conv3/kernel", "norm1/bias", "norm1/scale", "norm2/bias", "norm2/scale"]
    layers += ["norm3/bias", "norm3/scale", "shortcut_conv/kernel", "shortcut_norm/bias", "shortcut_norm/scale"]
    assert names(ResNet12((2, 2, 2, 2))) == [f"layer{i}/{n}" for i in (1, 2, 3, 4) for n in layers]
    found = names(ResNet18((2, 2, 2, 2), 2))
    assert {"stem/conv/kernel", "stem/norm/scale", "layer1_2/conv2/kernel", "layer2_1/shortcut_norm/bias"} <= set(found)
    assert not any("shortcut" in n for n in found if n.startswith("layer1") or "_2/" in n)


def test_options_are_the_modules_own():
    assert encoder("convnet4", 8, "episodic", "blocks=3") == ConvNet(8, 3, norm=Normalization.parse("episodic"))
    assert encoder("resnet12", options="channels=(4, 8, 8, 8)") == ResNet12((4, 8, 8, 8))
    assert encoder("resnet18", options="channels=[4, 8, 8, 8], blocks=2") == ResNet18((4, 8, 8, 8), 2)
    assert encoder("resnet18_standard", 4) == ResNet18((4, 8, 16, 32), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("block=3", r"convnet4 has no 'block'; its options are width \(int\), blocks \(int\)"),
        ("conv=3", "has no 'conv'"),
        ("norm='batch'", "has no 'norm'"),
        ("blocks=3.0", r"blocks=3\.0 is not of type int"),
        ("blocks=True", "blocks=True is not of type int"),
        ("blocks='3'", "is not of type int"),
        ("3", "must read like"),
        ("blocks", "must read like"),
        ("blocks=", "must read like"),
        ("blocks=min(3, 4)", "must read like"),
        ("blocks=3) + dict(", "must read like"),
        ("**{'blocks': 3}", "must read like"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=rf"model\.options=.*{message}"):
        encoder("convnet4", options=options)


def test_values_that_the_encoder_itself_refuses():
    with pytest.raises(ConfigError, match=r"model\.options='drop=1\.5': drop=1\.5 must be in \[0, 1\)"):
        encoder("resnet12", options="drop=1.5")


def test_the_length_of_a_tuple_counts():
    with pytest.raises(ConfigError, match=r"channels=\(4, 8\) is not of type tuple\[int, int, int, int\]"):
        encoder("resnet12", options="channels=(4, 8)")


def test_an_unknown_encoder_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.encoder='convnet5'") as caught:
        encoder("convnet5")
    assert caught.value.settings == {"model.encoder": "convnet4"}


class Own(nn.Module):
    """What a user brings: options of every kind, and a plain call."""

    depth: int
    rate: float = 0.5
    name_of_head: str | None = None
    sizes: tuple[int, ...] = ()
    order: Literal["first", "last"] = "last"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.depth)(x.reshape(len(x), -1))


OWN = f"{__name__}:Own"


def test_an_encoder_of_ones_own():
    own = encoder(OWN, options="depth=7, rate=1, sizes=(1, 2, 3), name_of_head=None, order='first'")
    assert own == Own(7, 1.0, None, (1, 2, 3), "first")
    assert isinstance(own.rate, float)
    assert shapes(Classifier(own, LinearHead(5), piece=1), 4)[1].shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "width", "options", "message"),
    [
        (OWN, 0, "", "model.options.* needs a value for depth"),
        (OWN, 4, "depth=1", "model.width=4.* has no attribute 'width'"),
        (OWN, 0, "depth=1, order='middle'", r"order='middle' is not of type"),
        (OWN, 0, "depth=1, sizes=(1, 'a')", r"is not of type tuple\[int, \.\.\.\]"),
        ("no.such_module:Own", 0, "", "model.encoder.*No module named 'no'"),
        (f"{__name__}:Missing", 0, "", "model.encoder.*no attribute 'Missing'"),
        (f"{__name__}:shapes", 0, "", "model.encoder.*is no class of Flax modules"),
        (":Own", 0, "", "model.encoder.*cannot be imported"),
    ],
)
def test_own_encoders_that_cannot_be(name, width, options, message):
    with pytest.raises(ConfigError, match=message):
        encoder(name, width, options=options)


def _plain(x, kernel, stride):
    padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("module", [functools.partial(ConvNet, 2, 2), functools.partial(ResNet18, (2, 2, 2, 2))])
def test_the_convolution_given_is_the_only_one_used(module):
    x = jnp.asarray(np.random.default_rng(0).random((2, 16, 16, 3)), jnp.float32)
    own, ours = module(conv=_plain), module()
    variables = jax.jit(lambda x: ours.init(jax.random.key(0), x, SUPPORT))(x)
    programs = [str(jax.make_jaxpr(lambda x, m=m: m.apply(variables, x, SUPPORT))(x)) for m in (own, ours)]
    assert ["closed_conv" in program for program in programs] == [False, True]
    assert ["conv_general_dilated" in program for program in programs] == [True, False]
    features = [jax.jit(lambda x, m=m: m.apply(variables, x, SUPPORT))(x) for m in (own, ours)]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)
