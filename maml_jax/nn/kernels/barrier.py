"""Identities that XLA's CPU compiler does not look through.

XLA fuses elementwise operations into all of their consumers, and computes them there again for every element that the
consumer writes; where a consumer broadcasts, that is work times the broadcast. And what is to be computed a second time
to save memory, it computes once and keeps. `lax.optimization_barrier` does not help on a CPU, where it is taken out
before either happens.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax.tree import PyTree


def materialize(x: jax.Array, after: jax.Array | None = None) -> jax.Array:
    """Returns the float array `x`, computed once and kept; linear, of every order of derivative.

    Args:
      x: of any shape.
      after: a float array; if given, the result is not there before this is.
    """
    return _materialize_p.bind(x, (x if after is None else after).reshape(-1)[0])


def recomputed(function: Callable[..., PyTree], module: nn.Module, x: jax.Array, *others: PyTree) -> PyTree:
    """`function(module, x, *others)` with only its inputs kept for the way back, where it is computed again.

    That happens once the cotangent is there. As `nn.remat`, but on a CPU too. Derivatives start with one in reverse
    mode.

    Args:
      function: calls the module, whose variables are float arrays and have been initialised.
      module: a bound one.
      x: a float array.
      *others: trees of arrays, which are constants for all derivatives, and of anything else.
    """
    return nn.transforms.lift_direct_transform(_lifted, (function,), module, x, *others)


def _lifted(call, scopes, *arguments):
    def inner(scope_of, repack, variables, rngs, x, *others):
        leaves, structure = jax.tree.flatten(others)
        arrays = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
        others = [None if str(i) in arrays else leaf for i, leaf in enumerate(leaves)]

        def function(variables, x, arrays):
            scope = scope_of(variables, rngs)
            how = structure.unflatten([arrays.get(str(i), leaf) for i, leaf in enumerate(others)])
            return call(scope, x, *how), repack(scope)

        return _recomputed(function, variables, x, arrays)

    return lift.pack(inner, (True,), (True,), (), name="recomputed")(scopes, *arguments)


def _evaluate(function: Callable[..., Any], variables: PyTree, x: jax.Array, arrays: PyTree) -> Any:
    return function(variables, x, arrays)


def _forward(function, variables, x, arrays):
    out, _ = jax.vjp(lambda *at: function(*at, arrays), variables, x)  # as for derivatives: it has forward ones too
    return out, (variables, x, arrays)


def _backward(function, kept, cotangents):
    variables, x, arrays = kept
    again = materialize(x, after=jax.tree.leaves(cotangents)[0])
    _, transpose = jax.vjp(lambda *at: function(*at, arrays), variables, again)
    return *transpose(cotangents), None


_recomputed = jax.custom_vjp(_evaluate, nondiff_argnums=(0,))
_recomputed.defvjp(_forward, _backward)


def _on_cpu(x, number):
    # Nothing crosses a loop, and that this one ends at once, or keeps x as it is, is known at run time only.
    unequal, equal = number != number, number == number
    return lax.while_loop(lambda c: c[0], lambda c: (equal, jnp.where(c[0], c[1], -c[1])), (unequal, x))[1]


def _batched(args, dims):
    (x, number), (x_dim, number_dim) = args, dims
    number = number if number_dim is None else number.reshape(-1)[0]  # any will do
    return _materialize_p.bind(x, number), x_dim


_materialize_p = Primitive("materialize")
_materialize_p.def_impl(lambda x, number: x)
_materialize_p.def_abstract_eval(lambda x, number: x)
ad.deflinear2(_materialize_p, lambda ct, x, number: [materialize(ct), ad.Zero(number.aval)])
batching.primitive_batchers[_materialize_p] = _batched
mlir.register_lowering(_materialize_p, mlir.lower_fun(lambda x, number: x, multiple_results=False))
mlir.register_lowering(_materialize_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
