"""Whether layers are to be computed in pieces: where what they keep would take much of a machine's memory."""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from maml_jax.meta.learner import Pass, Phase
from maml_jax.parallel import device_memory

PIECE = 5 * 2**20  # bytes of a layer's images at once: what stays in a CPU's cache
_CONVOLUTIONS = ("closed_conv", "conv_general_dilated")
_SHARE = 1 / 64  # of a device's memory that the convolved images of a query set may take


def default_piece(encoder: nn.Module, images: tuple[int, ...]) -> int:
    """Bytes of a layer's images at once, unless told otherwise: on a CPU as its memory needs; 0, no limit, elsewhere.

    Pieces cost time, since their layers are computed again on the way back: ConvNet4 a quarter, at 84 px.

    Args:
      encoder: of images, in a phase.
      images: shape of a query set, `[batch, height, width, channels]`.
    """
    if jax.default_backend() != "cpu":
        return 0
    taken = convolved_bytes(encoder, jax.ShapeDtypeStruct(images, jnp.float32))
    return PIECE if taken > _SHARE * device_memory() else 0


def convolved_bytes(encoder: nn.Module, images: jax.ShapeDtypeStruct) -> int:
    """Bytes of all that an encoder's convolutions give for a batch of images."""

    def outputs(x):
        return encoder.init_with_output(jax.random.key(0), x, Phase(Pass.QUERY))[0]

    jaxpr = jax.make_jaxpr(outputs)(images).jaxpr
    given = (
        e.outvars[0].aval for e in _equations(jaxpr) if e.primitive.name in ("closed_conv", "conv_general_dilated")
    )
    return sum(aval.size * aval.dtype.itemsize for aval in given)


def _equations(jaxpr: Jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, ClosedJaxpr):
                    yield from _equations(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    yield from _equations(part)
