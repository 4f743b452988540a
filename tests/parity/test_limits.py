"""What the arithmetic of a step is counted to be."""

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.nn.kernels.conv import conv
from parity.limits import count


def test_the_three_convolutions_of_a_gradient_count_the_same_and_scans_multiply():
    x, kernel, y = jnp.ones((2, 5, 4, 3)), jnp.ones((3, 3, 3, 7)), jnp.ones((2, 5, 4, 7))
    once = 2 * (2 * 5 * 4) * (3 * 3 * 3 * 7)

    def gradient(x, kernel):
        return jax.vjp(conv, x, kernel)[1](y)

    def thrice(x, kernel):
        return lax.scan(lambda total, _: (total + conv(x, kernel).sum(), None), 0.0, length=3)

    assert count(jax.make_jaxpr(gradient)(x, kernel).jaxpr).flops == 3 * once  # with the forward one
    assert count(jax.make_jaxpr(thrice)(x, kernel).jaxpr).flops == 3 * once
    product = jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((4, 5)), jnp.ones((5, 6))).jaxpr
    assert count(product) == (2 * 4 * 5 * 6, 4 * (4 * 5 + 5 * 6 + 4 * 6))
