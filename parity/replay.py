"""One case through `maml_jax` and through the PyTorch reference: everything a golden file records, by its names there.

Our side goes through what trains: the configuration, what is built of it, and `meta_step` itself.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from maml_jax import tree
from maml_jax.config import default
from maml_jax.episode import Episode
from maml_jax.experiment.method import build_learner, build_method, build_outer
from maml_jax.meta.method import evaluate_task
from maml_jax.meta.outer import Maml
from maml_jax.meta.step import MetaState, meta_step
from maml_jax.nn.model import FlaxLearner
from maml_jax.nn.starts import Zero
from maml_jax.tree import PyTree
from parity import convert
from parity.golden import Arrays, GoldenCase, block_of

_HEAD = ("kernel", "bias")  # of ours, which `reset_classifier` sets to zero


@dataclasses.dataclass(frozen=True)
class Port:
    """Our side of a case: the parts that its configuration gives, and where they start.

    Attributes:
      case: the case.
      method: in training.
      optimizer: the outer optimiser.
      params: meta-parameters.
      stats: the statistics that outlive an episode: means 0, variances 1.
      tested: the method in evaluation, where a head that the original resets is no parameter.
      tested_params: its parameters.
    """

    case: GoldenCase
    method: Maml
    optimizer: optax.GradientTransformation
    params: PyTree
    stats: PyTree
    tested: Maml
    tested_params: PyTree

    @classmethod
    def of(cls, case: GoldenCase) -> "Port":
        """The right parts."""
        config = config_of(case)
        params, stats = start(build_learner(config, case.n_way), case)
        config.inner.fixed = convert.fixed_of(case.inner.frozen, tree.names(params))
        method = tested = build_method(config, case.n_way)
        tested_params = params
        if case.inner.reset_classifier:
            tested = dataclasses.replace(method, learner=dataclasses.replace(method.learner, starts=Zero()))
            tested_params = Zero().kept(params)
        return cls(case, method, build_outer(config), params, stats, tested, tested_params)


def in_jax(
    case: GoldenCase,
    compiler_options: dict[str, Any] | None = None,
    change: Callable[[Port], Port] = lambda port: port,
) -> Callable[[int], Arrays]:
    """A case through `maml_jax`.

    Args:
      case: the case; what it recorded is not looked at.
      compiler_options: of `jax.jit`.
      change: puts other parts in the places of the right ones.

    Returns:
      A function of `disturbed`'s seed, or 0 for the case's own images, whose first call compiles. It gives arrays in
      PyTorch's names and layouts, as `parity.golden.compare` wants them.
    """
    with exactly(case.dtype):
        port = change(Port.of(case))
    train = _trainer(port, compiler_options)

    @jax.jit(compiler_options=compiler_options)
    def evaluate(episodes):
        def logits(episode):
            return evaluate_task(port.tested, port.tested_params, port.stats, episode, case.eval_n_step).logits

        return jax.lax.map(logits, episodes)

    def run(seed):
        with exactly(case.dtype):
            episodes = episodes_of(disturbed(case, seed) if seed else case)
            return train(episodes) | {"logits_eval": np.asarray(evaluate(episodes))}

    return run


@contextlib.contextmanager
def exactly(dtype: str) -> Iterator[None]:
    """Arithmetic in 'float64' or 'float32', in which accelerators would multiply matrices in less."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield


def disturbed(case: GoldenCase, seed: int) -> GoldenCase:
    """The case with every pixel moved by one rounding up, down or not at all."""
    rng = np.random.default_rng(seed)

    def move(x):
        return x + np.spacing(x) * rng.integers(-1, 2, x.shape).astype(x.dtype)

    return dataclasses.replace(case, support_x=move(case.support_x), query_x=move(case.query_x))


def config_of(case: GoldenCase) -> ml_collections.ConfigDict:
    """The configuration that a case describes, but for `inner.fixed`, which takes the names of the parameters."""
    config = default()
    config.model.encoder = case.encoder.replace("-", "_")
    config.model.width = case.width
    config.model.norm = convert.norm_of(case.norm)
    config.model.temperature = float(case.temp)
    config.model.learn_temperature = case.learn_temp
    config.inner.steps = case.inner.n_step
    config.inner.encoder_rate = float(case.inner.encoder_lr)
    config.inner.head_rate = float(case.inner.classifier_lr)
    config.inner.momentum = float(case.inner.momentum)
    config.inner.weight_decay = float(case.inner.weight_decay)
    config.inner.first_order = case.inner.first_order
    if case.outer is not None:
        config.outer.optimizer = case.outer.name
        config.outer.rate = float(case.outer.lr)
        config.outer.weight_decay = float(case.outer.weight_decay)
    return config


def start(learner: FlaxLearner, case: GoldenCase) -> tuple[PyTree, PyTree]:
    """A case's parameters in our form, and the statistics that outlive an episode: means 0, variances 1."""
    image = jax.ShapeDtypeStruct((1, case.image_size, case.image_size, 3), case.dtype)
    like, stats = jax.eval_shape(learner.init, jax.random.key(0), image)
    ours = convert.from_torch(case.params, like, convert.feature_shape(learner, case.image_size))
    fresh = tree.map_named(lambda n, s: (jnp.ones if n.endswith("var") else jnp.zeros)(s.shape, case.dtype), stats)
    return jax.tree.map(lambda x: jnp.asarray(x, case.dtype), ours), fresh


def _trainer(port: Port, compiler_options: dict[str, Any] | None) -> Callable[[Episode], Arrays]:
    """What meta-steps leave: the first one's logits, loss, gradient and statistics, and where they lead."""
    case, optimizer = port.case, optax.chain(_remember(), port.optimizer)
    features = convert.feature_shape(port.method.learner, case.image_size)

    def named(prefix, leaves):
        return {prefix + name: array for name, array in convert.to_torch(leaves, features).items()}

    @jax.jit(compiler_options=compiler_options)
    def step(state, episodes):
        return meta_step(port.method, optimizer, state, episodes)

    def train(episodes):
        state = MetaState(
            step=jnp.int32(0), params=port.params, stats=port.stats, optimizer=optimizer.init(port.params)
        )
        losses, outputs = [], {}
        for i in range(case.outer.steps if case.outer else 1):
            if case.inner.reset_classifier:
                zeros = {name: jnp.zeros_like(state.params["head"][name]) for name in _HEAD}
                state = state.replace(params={**state.params, "head": {**state.params["head"], **zeros}})
            state, results = step(state, episodes)
            losses.append(results.loss.mean())
            if i == 0:
                outputs = {"logits_train": np.asarray(results.logits), "loss_train": np.asarray(losses[0])}
                outputs |= named("grad/", state.optimizer[0])
                whole = jax.tree.map(lambda x: x[0], episodes)
                _, stats = port.method.learner.start(state.params, state.stats, whole.support_x, whole.support_y)
                outputs |= _buffers(case, named, stats, results.stats)
        if case.outer:
            outputs |= {"outer_losses": np.asarray(losses)} | named("outer_final/", state.params)
        return outputs

    return train


def _remember() -> optax.GradientTransformation:
    """Changes nothing; its state is the gradient that came last."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, state, params=None: (gradient, gradient)
    )


def _buffers(case: GoldenCase, named: Callable[[str, PyTree], Arrays], stats: PyTree, after: PyTree) -> Arrays:
    """Statistics that the next episode starts from; beside them, in episodic layers, those that each episode left."""
    buffers = named("buffer/", stats)
    for i in range(case.n_episode):
        episode = named("buffer/", jax.tree.map(lambda x, i=i: x[i], after))
        for name, array in episode.items():
            if case.norm[block_of(name.removeprefix("buffer/"))] == "episodic":
                buffers[f"{name}_{i}"] = array
    return buffers


def episodes_of(case: GoldenCase) -> Episode:
    """The case's episodes, channels last."""

    def images(x):
        return jnp.asarray(np.moveaxis(x, 2, -1), case.dtype)

    def labels(y):
        return jnp.tile(jnp.asarray(y, jnp.int32), (case.n_episode, 1))

    return Episode(images(case.support_x), labels(case.support_y), images(case.query_x), labels(case.query_y))


def in_torch(case: GoldenCase) -> Arrays:
    """What the PyTorch reference makes of a case: arrays as those of `in_jax`."""
    import torch

    from parity import reference

    spec = reference.ModelSpec(
        case.encoder, case.n_way, case.image_size, case.norm, case.temp, case.learn_temp, width=case.width
    )
    inner = reference.InnerSpec(**dataclasses.asdict(case.inner))
    params = {name: torch.tensor(value) for name, value in case.params.items()}
    stats = reference.init_stats(spec, params)
    labels = (torch.from_numpy(y).expand(case.n_episode, -1) for y in (case.support_y, case.query_y))
    images = (torch.from_numpy(x) for x in (case.support_x, case.query_x))
    batch = reference.Episodes(*(array for pair in zip(images, labels, strict=True) for array in pair))
    result = reference.meta_gradient(spec, inner, params, stats, batch)
    at_test = dataclasses.replace(inner, n_step=case.eval_n_step)
    outputs = {"logits_train": result.logits, "loss_train": result.loss}
    outputs["logits_eval"] = reference.evaluate(spec, at_test, params, stats, batch)
    outputs |= {f"grad/{name}": grad for name, grad in result.grads.items()}
    outputs |= {f"buffer/{name}": value for name, value in result.stats.items()}
    for i, after in enumerate(result.episode_stats):
        outputs |= {f"buffer/{name}_{i}": value for name, value in after.items() if spec.mode(name) == "episodic"}
    if case.outer is not None:
        rule = reference.OPTIMISERS[case.outer.name]
        optimiser = rule(params.values(), lr=case.outer.lr, weight_decay=case.outer.weight_decay)
        losses = []
        for _ in range(case.outer.steps):
            step = reference.outer_step(spec, inner, optimiser, params, stats, batch)
            stats = step.stats
            losses.append(step.loss)
        outputs |= {"outer_losses": torch.stack(losses)} | {f"outer_final/{n}": value for n, value in params.items()}
    return {name: value.detach().numpy() for name, value in outputs.items()}


def init_torch(case: GoldenCase) -> Arrays:
    """Parameters for a case as the reference draws them, but with random scales and shifts in normalisation.

    The shifts lie above 0, so that channels are mostly alive and gradients have something to flow through.
    """
    import torch

    from parity import reference

    generator = torch.Generator().manual_seed(case.seed)
    spec = reference.ModelSpec(
        case.encoder, case.n_way, case.image_size, temp=case.temp, learn_temp=case.learn_temp, width=case.width
    )
    params = reference.init_params(spec, generator, getattr(torch, case.dtype))
    for name, value in params.items():
        if value.ndim == 1:
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if "bn" in name and name.endswith("bias"):
            value += 0.5
    return {name: value.numpy() for name, value in params.items()}
