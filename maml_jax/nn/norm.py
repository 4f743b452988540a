"""Batch normalisation whose statistics are an argument, so that one layer can be transductive, episodic or global.

A layer's mode says where its moments come from on the two passes of an episode:

| mode       | support pass                                    | query pass         | statistics             |
| ---------- | ----------------------------------------------- | ------------------ | ---------------------- |
| `batch`    | the batch's                                     | the batch's        | none: transductive     |
| `episodic` | the batch's; updates running ones               | the running ones   | fresh in every episode |
| `global`   | training: as episodic; test: the running ones   | the running ones   | one set for the run    |
| `per_step` | training: as episodic; test: the running ones   | as on the support  | a set per inner step   |
| `metabn`   | the batch's                                     | the context's      | the context's          |
| `tasknorm` | the batch's, mixed with each image's own        | likewise           | the context's          |

`per_step` is MAML++'s (Antoniou et al. 2018, arXiv:1810.09502): scale and bias, too, are an inner step's own. The paper
accumulates statistics per step for use at test. Its public code accumulates them, but always normalises by the batch,
and so is transductive: that is `per_step_batch`, `batch` with a scale and bias for each inner step. What is peculiar to
a step has a leading axis, of which the layer takes the row `phase.step`.

`metabn` and `tasknorm` (TaskNorm-I; Bronskill et al. 2020, arXiv:2003.03284) take the moments of the support set, the
context, at the same parameters that the query set sees: hence a pass of its own over it (`Pass.CONTEXT`), through which
gradients flow. Both are inductive. They can replace `batch` in a trained model at test time.

Modes can differ from layer to layer (`Normalization`). A layer only reads the statistics it is given and returns
updated ones. It says by their collection what is to become of them: those in `batch_stats` are fresh in every episode,
and those in `lasting_stats` outlive it.
"""

import dataclasses
import math
import re
from typing import Literal, NamedTuple, Union, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax.errors import ConfigError
from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.moments import ImageMoments, at_least_float32, image_moments

Mode = Literal["batch", "episodic", "global", "per_step", "per_step_batch", "metabn", "tasknorm"]
MODES: tuple[Mode, ...] = get_args(Mode)
LASTING: tuple[Mode, ...] = ("global", "per_step")  # whose statistics outlive an episode
PER_STEP: tuple[Mode, ...] = ("per_step", "per_step_batch")  # whose parameters and statistics are a step's own
CONTEXT: tuple[Mode, ...] = ("metabn", "tasknorm")  # whose query pass needs a context pass before it
OPTIONAL = ("context_scale", "context_offset")  # parameters that a model trained in another mode lacks; zero at first
TRANSDUCTIVE: tuple[Mode, ...] = ("batch", "per_step_batch")  # which normalise query images together


@dataclasses.dataclass(frozen=True)
class Normalization:
    """The normalisation modes of an encoder, layer by layer.

    Attributes:
      entries: regular expressions and modes; the first that is found in a layer's name decides.
      steps: inner steps that `per_step` and `per_step_batch` layers have parameters for.
    """

    entries: tuple[tuple[str, Mode], ...] = (("", "batch"),)
    steps: int = 0

    @classmethod
    def parse(cls, text: Union[str, "Normalization"], steps: int = 0) -> "Normalization":
        """Reads a description.

        Args:
          text: a mode for all layers, such as 'episodic', or comma-separated `pattern=mode` entries of which the first
            whose regular expression is found in the layer's name decides, such as 'block[12]=global, episodic' (a bare
            mode fits all). What has been read already is given back.
          steps: see the attribute.

        Raises:
          ConfigError: an entry is malformed.
        """
        if isinstance(text, cls):
            return text
        parts = [entry.strip().rpartition("=") for entry in text.split(",")]
        entries = tuple((pattern.strip(), mode.strip()) for pattern, _, mode in parts)
        for pattern, mode in entries:
            if mode not in MODES:
                raise ConfigError(f"model.norm={text!r}: {mode!r} is not one of {', '.join(MODES)}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"model.norm={text!r}: {pattern!r} is not a regular expression: {error}") from None
        return cls(entries, steps)

    def mode(self, layer: str) -> Mode:
        """The mode of a layer, by its name, such as 'encoder/block1/norm'.

        Raises:
          ConfigError: no entry fits.
        """
        for pattern, mode in self.entries:
            if re.search(pattern, layer):
                return mode
        raise ConfigError(f"model.norm={str(self)!r} says nothing about {layer}; end it with a mode for all others")

    def layer(self, path: tuple[str, ...]) -> "BatchNorm":
        """Makes the layer at a place such as `('encoder', 'block1', 'norm')`; a subclass may make one of its own.

        Raises:
          ConfigError: no entry fits.
        """
        return BatchNorm(self.mode("/".join(path)), self.steps, name=path[-1])

    @property
    def uses_context(self) -> bool:
        """Whether some layer needs a context pass before a query pass."""
        return any(mode in CONTEXT for _, mode in self.entries)

    @property
    def transductive(self) -> bool:
        """Whether in some layer the images of a query set are normalised together."""
        return any(mode in TRANSDUCTIVE for _, mode in self.entries)

    def __str__(self) -> str:
        return ", ".join(f"{pattern}={mode}" if pattern else mode for pattern, mode in self.entries)


class Affine(NamedTuple):
    """What normalises activations x: gain (x - mean) + bias.

    Attributes:
      mean: `[batch, 1, 1, channels]`, of the activations' type. Taken off first: where channels are far from zero for
        their deviation, gain x + (bias - gain mean) would lose digits.
      gain: as `mean`.
      bias: as `mean`.
    """

    mean: jax.Array
    gain: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[batch, height, width, channels]`, or whichever of its entries are there."""
        return (x - self.mean) * self.gain + self.bias


class _Variables(NamedTuple):
    """What a layer has: arrays, and Flax variables by their names."""

    scale: jax.Array
    bias: jax.Array
    stats: dict[str, nn.Variable]
    mixture: tuple[jax.Array, ...]


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), in one of the modes above.

    Normalises with the biased variance; running statistics move by `momentum` towards the batch mean and the *unbiased*
    variance, as PyTorch has it. No gradient flows through running statistics. Those that outlive an episode are in the
    collection `lasting_stats`, the others in `batch_stats`.

    To normalise is `norm(x, phase)`. Who has something to gain by it, such as `maml_jax.nn.layers.ConvNorm`, measures
    by itself and asks for the map that normalises: `norm.affine(x, image_moments(x), phase)(x)` is the same.

    Attributes:
      mode: where moments come from.
      steps: inner steps that there are parameters and statistics for, in a leading axis, where the mode is `per_step`
        or `per_step_batch`. Beyond those, the last ones are used.
      momentum: weight of the newest batch in the running statistics.
      epsilon: added to the variance.

    Raises:
      ValueError: there is no such mode, or it needs a number of steps.
    """

    mode: Mode = "batch"
    steps: int = 0
    momentum: float = 0.1
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"BatchNorm has the modes {', '.join(MODES)}, not {self.mode!r}")
        if self.mode in PER_STEP and self.steps < 1:
            raise ValueError(f"BatchNorm of mode {self.mode} wants steps of at least 1, got {self.steps}")
        super().__post_init__()

    def __call__(self, x: jax.Array, phase: Phase) -> jax.Array:
        """Normalises `[batch, ..., channels]`."""
        return self.affine(x, image_moments(x), phase)(x)

    def rises(self, like: jax.Array | jax.ShapeDtypeStruct, phase: Phase) -> jax.Array:
        """Whether the map that normalises activations such as `like` is a rising one, bool `[channels]`."""
        return self._of_step(self._variables(like).scale, phase) >= 0

    def affine(
        self,
        like: jax.Array | jax.ShapeDtypeStruct,
        moments: ImageMoments,
        phase: Phase,
        offset: jax.Array | None = None,
    ) -> Affine:
        """The map that normalises x + `offset`, given x or some of its entries; updates the statistics.

        Args:
          like: x, or its shape `[batch, ..., channels]` and type.
          moments: of x.
          phase: decides which moments are used.
          offset: `[channels]`, such as the bias of a convolution, which costs nothing here; None for zeros.
        """
        variables = self._variables(like)
        scale, bias = (self._of_step(p, phase) for p in (variables.scale, variables.bias))
        mean, var = self._normalizing(moments, math.prod(like.shape[:-1]), offset, phase, variables)
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        images, *places, channels = like.shape
        ones = [1] * len(places)
        parts = (a.astype(like.dtype).reshape(-1, *ones, channels) for a in (mean, gain, bias))
        return Affine(*(jnp.broadcast_to(a, (images, *ones, channels)) for a in parts))

    @nn.compact
    def _variables(self, like) -> _Variables:
        channels, dtype = like.shape[-1:], at_least_float32(like)
        shape = (self.steps, *channels) if self.mode in PER_STEP else channels
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        collection = "lasting_stats" if self.mode in LASTING else "batch_stats"
        start = {"mean": (jnp.zeros, shape), "var": (jnp.ones, shape)}
        if self.mode in TRANSDUCTIVE:
            start = {}
        elif self.mode in CONTEXT:
            start = {f"context_{name}": how for name, how in start.items()} | {"context_size": (jnp.zeros, ())}
        stats = {name: self.variable(collection, name, how, of, dtype) for name, (how, of) in start.items()}
        mixture = ("context_scale", "context_offset") if self.mode == "tasknorm" else ()
        return _Variables(
            scale, bias, stats, tuple(self.param(name, nn.initializers.zeros, (), dtype) for name in mixture)
        )

    def _of_step(self, stored, phase):
        return stored[self._row(phase)] if self.mode in PER_STEP else stored

    def _row(self, phase):
        return jnp.clip(phase.step, 0, self.steps - 1)

    def _normalizing(self, moments, count, offset, phase, variables):
        """Mean and variance to normalise by, `[channels]`, or of each image `[batch, channels]`."""
        if self.mode in TRANSDUCTIVE:
            return moments.batch
        if self.mode in CONTEXT:
            return self._context_moments(moments, phase, variables)
        offset = jnp.zeros_like(moments.mean[0]) if offset is None else offset
        queried, tested = phase.which is Pass.QUERY, not phase.train
        mean, var = variables.stats["mean"], variables.stats["var"]
        running = self._of_step(mean.value, phase), self._of_step(var.value, phase)
        if {"episodic": queried, "global": queried or tested, "per_step": tested}[self.mode]:
            return running[0] - offset, running[1]
        batch_mean, batch_var = moments.batch
        if phase.which is not Pass.CONTEXT and not self.is_initializing():
            newest = batch_mean + offset, batch_var * (count / max(count - 1, 1))
            for variable, old, new in zip((mean, var), running, newest, strict=True):
                moved = self._move(old, new)
                per_step = self.mode in PER_STEP
                variable.value = variable.value.at[self._row(phase)].set(moved) if per_step else moved
        return batch_mean, batch_var

    def _context_moments(self, moments, phase, variables):
        """TaskNorm's mean and variance: the context's, with weight α, and those of each image by itself."""
        images, dtype = len(moments.mean), moments.mean.dtype
        stats = [variables.stats[f"context_{name}"] for name in ("mean", "var", "size")]
        queried = phase.which is Pass.QUERY
        context = tuple(s.value for s in stats) if queried else (*moments.batch, float(images))
        if phase.which is Pass.CONTEXT:
            for variable, value in zip(stats, context, strict=True):
                variable.value = jnp.asarray(value, dtype)
        if self.mode == "metabn":
            return context[:2]
        slope, level = variables.mixture
        alpha = nn.sigmoid(slope * context[2] + level)
        parts = ((alpha, *context[:2]), (1 - alpha, *moments))
        mean = sum(weight * m for weight, m, _ in parts)
        return mean, sum(weight * (v + jnp.square(m - mean)) for weight, m, v in parts)

    def _move(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)
