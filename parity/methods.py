"""Every method of the family, ours against the PyTorch reference: loss, meta-gradient and statistics in float64.

A method is a handful of settings on either side. Where it has parameters that the original knows nothing of (learned
rates, TaskNorm's, a scale for each step), these have names of their own in the reference; see `parity.reference`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maml_jax import tree
from maml_jax.config import default
from maml_jax.episode import Episode
from maml_jax.experiment.method import build_method
from maml_jax.meta.method import TaskResult
from maml_jax.meta.outer import Maml, task_loss
from maml_jax.meta.step import meta_gradient
from maml_jax.tree import PyTree
from parity import convert, reference, reference_methods, replay

TOLERANCE = 1e-9
_SIZE, _TASKS, _WAY, _SHOT, _QUERY = 32, 1, 2, 2, 2
_BASE = {"model.width": 4, "inner.steps": 2, "inner.encoder_rate": 0.05, "inner.head_rate": 0.1}


class Method(NamedTuple):
    """A method, for either side.

    Attributes:
      ours: fields of the configuration, beside those of `_BASE`.
      inner: fields of the reference's `InnerSpec` that say the same.
      model: fields of its `ModelSpec`.
      weights: of the multi-step loss, one for each inner step, or none.
      gradient: the reference's function that gives the meta-gradient.
    """

    ours: dict[str, Any]
    inner: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    model: dict[str, Any] = {}  # noqa: RUF012
    weights: tuple[float, ...] = ()
    gradient: Callable[..., reference.MetaGradient] = reference.meta_gradient


_LSLR = {"inner.learn_rates": "tensor", "inner.rates_per_step": True}
METHODS = {
    "maml": Method({}),
    "fomaml": Method({"inner.first_order": True}, {"first_order": True}),
    "anil": Method({"inner.fixed": "^encoder"}, {"frozen": ("encoder.",)}),
    "boil": Method({"inner.fixed": "^head"}, {"frozen": ("classifier.",)}),
    "group_rates": Method({"inner.learn_rates": "group"}),
    "lslr": Method(_LSLR | {"inner.positive_rates": True}, {"rates_per_step": True, "positive_rates": True}),
    "metasgd": Method({"inner.learn_rates": "element"}),
    "rmsprop": Method({"inner.optimizer": "rmsprop", "inner.epsilon": 1e-3}, {"optimiser": "rmsprop", "epsilon": 1e-3}),
    "adam": Method({"inner.optimizer": "adam", "inner.epsilon": 1e-3}, {"optimiser": "adam", "epsilon": 1e-3}),
    "multi_step": Method({"inner.steps": 3}, {"n_step": 3}, weights=(0.2, 0.3, 0.5)),
    "per_step": Method({"model.norm": "per_step"}, model={"norm": "per_step"}),
    "mamlpp": Method(
        _LSLR | {"model.norm": "per_step_batch", "inner.fixed": "norm"},
        {"rates_per_step": True, "frozen": ("bn",)},
        {"norm": "per_step_batch"},
        (0.4, 0.6),
    ),
    "metabn": Method({"model.norm": "metabn"}, model={"norm": "metabn"}),
    "tasknorm": Method({"model.norm": "tasknorm"}, model={"norm": "tasknorm"}),
    "shared_head": Method({"model.head": "shared"}, model={"head": "shared"}),
    "prototypes": Method({"model.head": "prototypes"}, model={"head": "prototypes"}),
    "protonet": Method(  # a step that leads nowhere, since without `jit` JAX cannot take none
        {"model.head": "prototypes", "inner.steps": 1, "inner.encoder_rate": 0.0, "inner.head_rate": 0.0},
        {"n_step": 1, "encoder_lr": 0.0, "classifier_lr": 0.0},
        {"head": "prototypes"},
    ),
    "reptile": Method({"outer.method": "reptile"}, gradient=reference_methods.reptile_gradient),
    "imaml": Method(  # with a λ by which conjugate gradients soon come to their end, and rates to suit it
        {"outer.method": "imaml", "inner.proximal": 100.0, "inner.fixed": "norm", "outer.cg_steps": 10}
        | dict.fromkeys(("inner.encoder_rate", "inner.head_rate"), 0.005),
        {"proximal": 100.0, "frozen": ("bn",), "encoder_lr": 0.005, "classifier_lr": 0.005},
        gradient=reference_methods.implicit_gradient,
    ),
    "proximal": Method({"inner.proximal": 5.0}, {"proximal": 5.0}),
    "curvature": Method({"inner.precondition": "curvature"}),
    "tnet": Method({"model.options": "warp=True", "inner.fixed": "warp$"}, {"frozen": (".warp",)}),
    "cavia": Method(
        {"model.options": "context=3", "inner.fixed": "^(?!encoder/film/context$)"},
        {"frozen": ("encoder.encoder", "classifier.", "film.weight", "film.scale", "film.shift"), "context": 3},
    ),
    "summed_loss": Method({"model.loss": "summed_cross_entropy"}, model={"summed_loss": True}),
}


def config_of(method: Method) -> ml_collections.ConfigDict:
    """Our configuration of a method, at tiny shapes."""
    config = default()
    config.update_from_flattened_dict(_BASE | method.ours)
    return config


def compare(name: str) -> tuple[dict[str, float], convert.Arrays]:
    """Runs a method on both sides.

    Returns:
      For 'loss', 'grad' and 'stats' (if there are any), the largest difference over the largest entry expected; and the
      reference's meta-gradient.
    """
    method = METHODS[name]
    with replay.exactly("float64"):
        ours = _Ours.of(method)
        gradient, results = meta_gradient(ours.method, ours.params, ours.stats, ours.episodes)
        lasting = jax.tree.map(lambda x: x.mean(0), ours.method.learner.lasting(results.stats))
        found = {"grad": ours.to_torch(gradient), "stats": ours.to_torch(lasting)}
        theirs = _in_torch(method, ours.to_torch(ours.params), ours.to_torch(ours.stats), ours.episodes)
    errors = {} if method.weights else {"loss": abs(np.asarray(results.loss).mean() / float(theirs.loss) - 1)}
    for quantity, expected in (("grad", theirs.grads), ("stats", theirs.stats)):
        if expected:
            errors[quantity] = _error(found[quantity], {n: value.numpy() for n, value in expected.items()})
    return errors, {name: value.numpy() for name, value in theirs.grads.items()}


class _Ours(NamedTuple):
    """Our side of a method: float64, away from the special values that parameters start at, and random tasks."""

    method: Maml
    params: PyTree
    stats: PyTree
    episodes: Episode

    @classmethod
    def of(cls, method: Method) -> "_Ours":
        rng = np.random.default_rng(0)
        ours = build_method(config_of(method), _WAY)
        ours = _Weighted(**vars(ours), weights=method.weights) if method.weights else ours
        example = jax.tree.map(lambda x: x[0], _episodes(np.random.default_rng(0)))
        params, stats = ours.init(jax.random.key(0), example)
        return cls(ours, tree.map_named(lambda name, leaf: _moved(rng, name, leaf), params), stats, _episodes(rng))

    def to_torch(self, leaves: PyTree) -> convert.Arrays:
        """As `convert.to_torch`, with the methods' own parameters."""
        features = convert.feature_shape(self.method.learner, _SIZE)
        return {torch_name(n): _layout(n, np.asarray(leaf), features) for n, leaf in tree.by_name(leaves).items()}


def _moved(rng: np.random.Generator, name: str, leaf: jax.Array) -> jax.Array:
    moved = np.asarray(leaf, np.float64)
    if "kernel" not in name or name.startswith(("rates", "precondition")):
        moved = moved + (0.01 if name.startswith("rates") else 0.1) * rng.standard_normal(leaf.shape)
    if "norm" in name and name.endswith("bias") and not name.startswith("rates"):
        moved = moved + 0.5  # few channels need to be mostly alive, see `replay.init_torch`
    return jnp.asarray(moved)


def _episodes(rng: np.random.Generator) -> Episode:
    def images(count):
        return jnp.asarray(rng.random((_TASKS, _WAY * count, _SIZE, _SIZE, 3)))

    def labels(count):
        return jnp.tile(jnp.repeat(jnp.arange(_WAY, dtype=jnp.int32), count), (_TASKS, 1))

    return Episode(images(_SHOT), labels(_SHOT), images(_QUERY), labels(_QUERY))


@dataclasses.dataclass(frozen=True)
class _Weighted(Maml):
    """MAML with a multi-step loss of given weights, which in training follow from the meta-step."""

    weights: tuple[float, ...] = ()

    def task_gradient(
        self, params: PyTree, stats: PyTree, episode: Episode, step: jax.Array
    ) -> tuple[PyTree, TaskResult]:
        """See `Method.task_gradient`."""
        weights = jnp.asarray(self.weights)

        def loss(params):
            return task_loss(self.learner, self.inner, params, stats, episode, self.steps, weights)

        return jax.grad(loss, has_aux=True)(params)


def torch_name(name: str) -> str:
    """The reference's name of our parameter or statistic."""
    if name.startswith("rates/"):
        of = name.removeprefix("rates/")
        return "lr." + ({"encoder": "encoder", "head": "classifier"}.get(of) or convert.torch_name(of))
    layer, _, leaf = name.rpartition("/")
    if name.startswith("precondition/"):
        return f"mc.{torch_name(layer.removeprefix('precondition/'))}.{leaf}"
    if layer == "encoder/film":
        return f"encoder.film.{'weight' if leaf == 'kernel' else leaf}"
    if leaf == "warp":
        return convert.torch_name(f"{layer}/kernel").removesuffix("weight") + leaf
    if leaf.startswith("context_"):
        return convert.torch_name(f"{layer}/scale").removesuffix("weight") + leaf
    return convert.torch_name(name)


def _layout(name, array, features):
    if name == "precondition/head/kernel/in":  # both axes are of features
        return _layout("head/kernel", _layout("head/kernel", array, features), features)
    if name == "encoder/film/kernel" or name.endswith("/warp"):
        return array.T
    return array if array.ndim < 2 else convert.layout_to_torch(name.removeprefix("rates/"), array, features)


def _in_torch(method: Method, params, stats, episodes: Episode) -> reference.MetaGradient:
    import torch

    spec = reference.ModelSpec("convnet4", _WAY, _SIZE, **({"width": 4} | method.model))
    inner = reference.InnerSpec(**({"n_step": 2, "encoder_lr": 0.05, "classifier_lr": 0.1} | method.inner))

    def tensor(array):
        array = np.asarray(array)
        return torch.from_numpy(np.array(np.moveaxis(array, -1, 2) if array.ndim == 5 else array))

    batch = reference.Episodes(*(tensor(x).long() if x.ndim == 2 else tensor(x) for x in episodes[:4]))
    params = {name: tensor(value) for name, value in params.items()}
    stats = {name: tensor(value) for name, value in stats.items()}
    weights = [method.weights] if method.weights else []
    return method.gradient(spec, inner, params, stats, batch, *weights)


def _error(ours: convert.Arrays, expected: convert.Arrays) -> float:
    if ours.keys() != expected.keys():
        return float("inf")
    scale = max(np.abs(value).max() for value in expected.values())
    return max(float(np.abs(ours[name] - value).max()) for name, value in expected.items()) / scale
