"""Deliberately wrong inner loops, each put in the place of the right one; see `tests.parity.mutations`."""

import jax
import optax
from jax import lax

from maml_jax import tree
from maml_jax.meta.inner import InnerLoop, sgd
from tests.parity.mutations import both, of_class, replace

TEMPERATURE = "head/temperature"


def inner(port, change):
    return both(port, lambda method: replace(method, inner=change(method.inner)))


# Inner rule


def rule(port, make):
    """Replaces the inner rule by the chain that `make(momentum, weight_decay)` gives, and descent."""
    args = port.case.inner
    rates = {"encoder": args.encoder_lr, "head": args.classifier_lr}
    chain = optax.chain(*make(args.momentum, args.weight_decay), sgd(rates))
    return inner(port, lambda right: replace(right, optimizer=chain))


def decay_skipped(port):
    return rule(port, lambda momentum, decay: [optax.trace(momentum)])


def decay_beside_the_momentum(port):
    return rule(port, lambda momentum, decay: [optax.trace(momentum), optax.add_decayed_weights(decay)])


def decay_not_on_normalisation(port):
    convolutions = lambda params: tree.map_named(lambda name, leaf: "norm" not in name, params)  # noqa: E731
    return rule(port, lambda momentum, decay: [optax.add_decayed_weights(decay, convolutions), optax.trace(momentum)])


def momentum_skipped(port):
    return rule(port, lambda momentum, decay: [optax.add_decayed_weights(decay)])


def momentum_of_nesterov(port):
    return rule(port, lambda momentum, decay: [optax.add_decayed_weights(decay), optax.trace(momentum, nesterov=True)])


def momentum_dampened(port):
    return rule(port, lambda momentum, decay: [optax.add_decayed_weights(decay), optax.ema(momentum, debias=False)])


def momentum_buffer_not_reset(port):
    def make(momentum, decay):
        trace = optax.trace(momentum)
        left = lambda params: trace.init(params)._replace(trace=jax.tree.map(lambda p: 0.01 * p, params))  # noqa: E731
        return [optax.add_decayed_weights(decay), optax.GradientTransformation(left, trace.update)]

    return rule(port, make)


def first_order_detaches_the_decay_too(port):
    def detached(decay):
        right = optax.add_decayed_weights(decay)
        update = lambda g, state, params=None: lax.stop_gradient(right.update(g, state, params))  # noqa: E731
        return optax.GradientTransformation(right.init, update)

    return rule(port, lambda momentum, decay: [detached(decay), optax.trace(momentum)])


def first_order_detaches_the_momentum_too(port):
    def make(momentum, decay):
        trace = optax.trace(momentum)
        update = lambda g, state, params=None: trace.update(g, lax.stop_gradient(state), params)  # noqa: E731
        return [optax.add_decayed_weights(decay), optax.GradientTransformation(trace.init, update)]

    return rule(port, make)


def support_loss_summed(port):
    images = float(len(port.case.support_y))
    return inner(port, lambda right: replace(right, optimizer=optax.chain(optax.scale(images), right.optimizer)))


def rates_swapped(port):
    args = port.case.inner
    rates = {"encoder": args.classifier_lr, "head": args.encoder_lr}
    return inner(port, lambda right: replace(right, optimizer=sgd(rates, args.momentum, args.weight_decay)))


# What adapts, and how


def first_order_instead_of_second(port):
    return inner(port, lambda right: replace(right, first_order=True))


def second_order_instead_of_first(port):
    return inner(port, lambda right: replace(right, first_order=False))


def frozen_parameters_adapt(port):
    return inner(port, lambda right: replace(right, is_adapted=lambda name: name != TEMPERATURE))


def temperature_adapts(port):
    def change(right):
        return replace(right, is_adapted=lambda name: name == TEMPERATURE or right.is_adapted(name))

    return inner(port, change)


class Detached(InnerLoop):
    """Lets no meta-gradient through to what does not adapt."""

    def start(self, *arguments):
        adapted, fixed, stats = super().start(*arguments)
        return adapted, lax.stop_gradient(fixed), stats


def frozen_parameters_are_not_meta_learned(port):
    return inner(port, lambda right: of_class(Detached, right))
