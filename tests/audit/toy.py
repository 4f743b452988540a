"""A model whose answers are known, its tasks, and the same again in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax.audit.subject import Counts, Subject
from maml_jax.episode import Episode
from maml_jax.evaluate import EachTask
from maml_jax.meta.inner import InnerLoop, sgd
from maml_jax.meta.learner import Pass
from maml_jax.meta.outer import Maml

WAY, SHOT, POOL, SIZE, STEPS, RATE = 3, 2, 5, 4, 2, 0.7
COUNTS = Counts(rows=6, many=60, leak=4, ordered=5)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A linear classifier of scaled and centred inputs, in plain JAX.

    In `batch` inputs are centred by the batch, in `metabn` queries by the support set; `leaky` is said to be inductive
    and centres by the batch.
    """

    norm: str = "batch"
    zero_head: bool = False

    @property
    def uses_context(self):
        return self.norm == "metabn"

    def init(self, key, x):
        return jax.tree.map(jnp.asarray, toy_params(int(jax.random.key_data(key)[-1]))), {}

    def start(self, params, stats, support_x, support_y):
        del stats, support_y
        if self.zero_head:
            params = {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}
        return params, {"mean": jnp.zeros(support_x.shape[1])}

    def features(self, params, stats, x, phase):
        queried = phase.which is Pass.QUERY
        mean = stats["mean"] if self.norm == "metabn" and queried else x.mean(0)
        if phase.which is Pass.CONTEXT:
            stats = {"mean": mean}
        return (x - mean) * params["encoder"]["scale"], stats

    def apply(self, params, stats, x, phase):
        features, stats = self.features(params, stats, x, phase)
        return features @ params["head"]["kernel"] + params["head"]["bias"], stats

    def loss(self, outputs, y):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    def lasting(self, stats):
        return {}


def toy_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder": {"scale": rng.normal(1, 0.3, SIZE).astype(np.float32)},
        "head": {
            "kernel": rng.normal(0, 0.8, (SIZE, WAY)).astype(np.float32),
            "bias": rng.normal(0, 0.3, WAY).astype(np.float32),
        },
    }


@dataclasses.dataclass(frozen=True)
class Clouds:
    """Tasks of classes that are clouds of points."""

    split: int = 0

    def sample(self, index):
        key = jax.random.fold_in(jax.random.key(self.split), index)
        centre_key, point_key = jax.random.split(key)
        centres = jax.random.normal(centre_key, (WAY, 1, SIZE))
        points = centres + 0.8 * jax.random.normal(point_key, (WAY, SHOT + POOL, SIZE))
        labels = jnp.arange(WAY, dtype=jnp.int32)
        return Episode(
            points[:, :SHOT].reshape(-1, SIZE),
            jnp.repeat(labels, SHOT),
            points[:, SHOT:].reshape(-1, SIZE),
            jnp.repeat(labels, POOL),
        )


def method(norm="batch", **how):
    return Maml(Toy(norm, **how), InnerLoop(sgd(RATE)), STEPS)


def toy_subject(*norms, **changes):
    norms = norms or ("batch", "metabn")
    whole = {
        "methods": {norm: method(norm) for norm in norms},
        "transductive": {norm: norm == "batch" for norm in norms},
        "params": toy_params(),
        "stats": {},
        "fresh": (toy_params(1), {}),
        "steps": STEPS,
        "tasks": Clouds(),
        "train_tasks": Clouds(1),
        "way": WAY,
        "shot": SHOT,
        "query": 2,
        "pool": POOL,
        "classified": True,
        "seed": 0,
        "backend": "shard_map",
        "counts": COUNTS,
    }
    return Subject(**{**whole, **changes})


def each(function, count, *beside, params=None, tasks=None):
    return EachTask(function, at_least=1)(params or toy_params(), {}, tasks or Clouds(), count, beside=beside)


def episode(index):
    return jax.tree.map(np.asarray, Clouds().sample(index))


# The same again in NumPy, with the gradients by hand.


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits(p, x, mean):
    return (x - mean) * p["scale"] @ p["kernel"] + p["bias"]


def descend(task, steps, y=None, adapts=("scale", "kernel", "bias"), start=None):
    start = start or toy_params()
    p = {**start["encoder"], **start["head"]}
    x, y = task.support_x - task.support_x.mean(0), task.support_y if y is None else y
    for _ in range(steps):
        d = (softmax(x * p["scale"] @ p["kernel"] + p["bias"]) - np.eye(WAY)[y]) / len(y)
        gradient = {"scale": (d @ p["kernel"].T * x).sum(0), "kernel": (x * p["scale"]).T @ d, "bias": d.sum(0)}
        p = {name: value - RATE * gradient[name] * (name in adapts) for name, value in p.items()}
    return p


def ask(p, task, norm, rows):
    x = task.query_x[rows]
    return logits(p, x, task.support_x.mean(0) if norm == "metabn" else x.mean(0))


def first(size):
    return [c * POOL + i for c in range(WAY) for i in range(size)]


def protocol(whole):
    facts = {"way": WAY, "shot": SHOT, "norm": whole.own, "pool": whole.pool, "split": "test", "inner_steps": STEPS}
    run = {"step": 0, "checkpoint": "best", "parameters_sha256": "0" * 64}
    around = {"versions": {"jax": "1"}, "device": {"kind": "cpu", "count": 1}}
    return {**facts, **run, **around, "data": {"name": "glyphs", "trained_on": "glyphs"}}
