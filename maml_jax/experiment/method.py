"""From a configuration to the method, its learner, and the optimisers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from maml_jax.meta.implicit import ImplicitMaml
from maml_jax.meta.inner import InnerLoop, all_but, descent
from maml_jax.meta.method import Method
from maml_jax.meta.outer import Annealing, Maml
from maml_jax.meta.precondition import Curvature
from maml_jax.meta.rates import LearnedRates
from maml_jax.meta.reptile import Reptile
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.context import ZeroContext
from maml_jax.nn.encoders import encoder
from maml_jax.nn.head import LinearHead
from maml_jax.nn.kernels.budget import default_piece
from maml_jax.nn.layers import Encoder
from maml_jax.nn.loss import LOSSES
from maml_jax.nn.model import FlaxLearner
from maml_jax.nn.norm import Normalization
from maml_jax.nn.starts import STARTS


class MethodEntry(NamedTuple):
    """A method that `outer.method` can name.

    Attributes:
      make: the method, of a learner, an inner loop and a configuration.
      without: fields that say nothing to it, and so must be as they are by default.
      own: fields that say something to no method that does not name them here.
      needs: fields that must not be as they are by default, with a value that will do.
      refuses: values of fields that it can do nothing with, and why not.
    """

    make: Callable[[FlaxLearner, InnerLoop, ml_collections.ConfigDict], Method]
    without: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    needs: Mapping[str, float] = {}
    refuses: tuple[tuple[str, Any, str], ...] = ()


def _maml(learner: FlaxLearner, inner: InnerLoop, config: ml_collections.ConfigDict) -> Maml:
    return Maml(learner, inner, config.inner.steps, Annealing(config.outer.multi_step, config.outer.first_order))


# What says nothing where no derivative goes through the inner loop.
_LEARNED = ("inner.rates_per_step", "inner.positive_rates", "inner.learn_rates", "inner.precondition")
_THROUGH = (*_LEARNED, "inner.first_order", "outer.multi_step", "outer.first_order")
METHODS = {
    "maml": MethodEntry(_maml),
    "reptile": MethodEntry(
        lambda learner, inner, config: Reptile(learner, inner, config.inner.steps),
        without=_THROUGH,
        refuses=(("model.head", "shared", "where the vectors of classes went to is not where one vector should go"),),
    ),
    "imaml": MethodEntry(
        lambda learner, inner, config: ImplicitMaml(learner, inner, config.inner.steps, config.outer.cg_steps),
        without=(*_THROUGH, "inner.weight_decay", "inner.checkpoint", "inner.forward_over_reverse"),
        own=("outer.cg_steps",),
        needs={"inner.proximal": 2.0},
    ),
}
PRECONDITIONERS = {"curvature": Curvature()}
"""By the names that `inner.precondition` takes, beside 'none'."""


def silent(method: str) -> tuple[str, ...]:
    """The fields that say nothing to a method, its own `without` and what is another's `own`."""
    entry = METHODS[method]
    others = {name for other in METHODS.values() for name in other.own} - set(entry.own)
    return (*entry.without, *sorted(others))


def build_method(config: ml_collections.ConfigDict, way: int) -> Method:
    """The method of `config` in meta-training, for a number of classes."""
    return METHODS[config.outer.method].make(build_learner(config, way), build_inner(config), config)


def build_tested(config: ml_collections.ConfigDict, way: int) -> Method:
    """The method at meta-test, where the head may start elsewhere, and rates be others."""
    learner = dataclasses.replace(build_learner(config, way), starts=ZeroContext(STARTS[config.eval.head]))
    inner, factor = build_inner(config), config.eval.rate_factor
    if factor != 1:
        inner = dataclasses.replace(inner, optimizer=optax.chain(inner.optimizer, optax.scale(factor)))
    return METHODS[config.outer.method].make(learner, inner, config)


def build_learner(config: ml_collections.ConfigDict, way: int) -> FlaxLearner:
    """The classifier of `config.model` for a number of classes."""
    m = config.model
    norm = Normalization.parse(m.norm, config.inner.steps)
    network = encoder(m.encoder, m.width, norm, m.options)
    classifier = Classifier(
        network,
        LinearHead(way, m.temperature, m.learn_temperature),
        piece=m.piece_mib * 2**20 or _default_piece(config, network),
        half=m.precision == "bfloat16",
    )
    return FlaxLearner(classifier, LOSSES[m.loss], ZeroContext(STARTS[m.head]))


def _default_piece(config: ml_collections.ConfigDict, network: nn.Module) -> int:
    if not isinstance(network, Encoder):
        return 0
    batch, side = max(part.way * part.query for part in (config.task, config.eval)), config.data.image_size
    return default_piece(network, (batch, side, side, 3))


def build_inner(config: ml_collections.ConfigDict) -> InnerLoop:
    """The inner loop of `config.inner`. A temperature never adapts."""
    c = config.inner
    root = c.epsilon**2  # √(v + ε²) for √v + ε, whose derivative at v = 0 is infinite
    directions = {
        "sgd": lambda: optax.trace(c.momentum) if c.momentum else optax.identity(),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=root, eps_in_sqrt=True),
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=0.0, eps_root=root),
    }
    initial = {"encoder": c.encoder_rate, "head": c.head_rate}
    rule = descent(directions[c.optimizer](), initial, c.weight_decay)
    rates = None
    if c.learn_rates != "none":
        rates = LearnedRates(c.learn_rates, initial, c.steps if c.rates_per_step else 0, c.positive_rates)
    return InnerLoop(
        optimizer=optax.chain(optax.clip(c.clip), rule) if c.clip else rule,
        is_adapted=all_but("|".join(filter(None, ("^head/temperature$", c.fixed)))),
        first_order=c.first_order,
        checkpoint=c.checkpoint,
        forward_over_reverse=c.forward_over_reverse,
        rates=rates,
        precondition=PRECONDITIONERS.get(c.precondition),
        proximal=c.proximal,
    )


def build_outer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The outer optimiser of `config.outer`, with PyTorch's constants; weight decay is added to the gradient."""
    c = config.outer
    rules = {
        "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        "sgd": lambda: optax.trace(c.momentum),
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False),
    }
    return optax.chain(
        _clip(c.clip) if c.clip else optax.identity(),
        optax.add_decayed_weights(c.weight_decay) if c.weight_decay else optax.identity(),
        rules[c.optimizer](),
        optax.scale_by_learning_rate(build_schedule(config)),
    )


def _clip(most: float) -> optax.GradientTransformation:
    """Clips entry by entry, as `optax.clip`, and leaves what is infinite for training to find."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda g: jnp.where(jnp.isinf(g), g, jnp.clip(g, -most, most)), updates)
    )


def build_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """The outer learning rate as a function of the meta-steps taken, changing every `outer.period` of them."""
    c = config.outer
    schedules = {
        "constant": lambda: optax.constant_schedule(c.rate),
        "step": lambda: optax.piecewise_constant_schedule(c.rate, dict.fromkeys(c.milestones, c.factor)),
        "cosine": lambda: optax.cosine_decay_schedule(c.rate, max(config.train.steps, 1)),
    }
    schedule = schedules[c.schedule]()
    return lambda step: schedule(step // c.period * c.period)
