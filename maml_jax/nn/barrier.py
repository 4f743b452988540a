"""An identity that XLA's CPU compiler does not look through.

XLA fuses elementwise operations into all of their consumers, and computes them there again for every element that the
consumer writes. Where a consumer broadcasts, that is work times the broadcast. `lax.optimization_barrier` does not help
on a CPU, where it is taken out before fusion.
"""

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def materialize(x: jax.Array) -> jax.Array:
    """Returns the float array `x`, computed once and kept; linear, of every order of derivative."""
    return _materialize_p.bind(x)


def _on_cpu(x):
    # No fusion crosses a loop, and that this one ends at once is known at run time only. (Where it does not, x holds a
    # NaN and its sum with itself holds it too.)
    first = x.reshape(-1)[0]
    return lax.while_loop(lambda c: c[0], lambda c: (first == first, c[1] + c[1]), (first != first, x))[1]


_materialize_p = Primitive("materialize")
_materialize_p.def_impl(lambda x: x)
_materialize_p.def_abstract_eval(lambda x: x)
ad.deflinear2(_materialize_p, lambda ct, x: [materialize(ct)])
batching.defvectorized(_materialize_p)
mlir.register_lowering(_materialize_p, mlir.lower_fun(lambda x: x, multiple_results=False))
mlir.register_lowering(_materialize_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
