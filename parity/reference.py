"""Model-agnostic meta-learning in plain PyTorch: the yardstick that `maml_jax` is measured against.

Everything is a function of dictionaries: parameters and running statistics map the names of the original
PyTorch-MAML's state dicts (`encoder.encoder.conv1.conv.weight`, `encoder.layer1.res_conv.bn.running_mean`,
`classifier.linear.weight`) to tensors in PyTorch's layouts.

The algorithm (Finn et al. 2017, arXiv 1703.03400), for parameters θ and episodes i of support S_i and queries Q_i:

    θ_i = θ - lr ∇ L(θ; S_i)                 repeated for `n_step` steps                 `adapt`
    L_meta(θ) = mean_i L(θ_i; Q_i)           mean cross-entropy over all queries         `meta_loss`
    θ ← optimiser(θ, clip(∇ L_meta(θ)))      first order: ∇ L(θ; S_i) held constant      `outer_step`

Throughout, `spec` is the model, `inner` the inner loop, `params` and `stats` are the dictionaries above. No function
modifies its arguments, except `outer_step`, which updates `params` in place as PyTorch's optimisers do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

Tensors = dict[str, Tensor]
# A convolution and its normalisation: (x, name of conv, name of norm, channels, kernel=3, stride=1) -> x.
# `forward` passes one that computes, `init_params` one that creates the parameters as it meets them.
ConvNorm = Callable[..., Tensor]

NORM_MODES = ("batch", "episodic", "global")
TEMP = "classifier.temp"
HEAD = ("classifier.linear.weight", "classifier.linear.bias")
CLIP = 10.0  # every entry of the meta-gradient is clipped to ±CLIP before an outer step
# Called with (params.values(), lr=..., weight_decay=...); PyTorch adds weight decay to the gradient in all three.
OPTIMISERS = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9), "rmsprop": torch.optim.RMSprop}


def _convnet4(x: Tensor, conv_norm: ConvNorm, channels: int) -> Tensor:
    """Four times conv, normalise, ReLU, pool; features are the flattened last map, channels first."""
    for i in range(1, 5):
        block = f"encoder.encoder.conv{i}"
        x = F.max_pool2d(F.relu(conv_norm(x, f"{block}.conv", f"{block}.bn", channels)), 2)
    return x.flatten(1)


def _resnet12(x: Tensor, conv_norm: ConvNorm, channels: tuple[int, ...]) -> Tensor:
    """Four residual blocks of three convolutions, each pooled; features are the last map's mean."""
    for i, c in enumerate(channels, start=1):
        block = f"encoder.layer{i}"
        y = F.leaky_relu(conv_norm(x, f"{block}.conv1", f"{block}.bn1", c), 0.1)
        y = F.leaky_relu(conv_norm(y, f"{block}.conv2", f"{block}.bn2", c), 0.1)
        y = conv_norm(y, f"{block}.conv3", f"{block}.bn3", c)
        y = y + conv_norm(x, f"{block}.res_conv.conv", f"{block}.res_conv.bn", c, kernel=1)
        x = F.max_pool2d(F.leaky_relu(y, 0.1), 2)
    return x.mean((2, 3))


def _resnet18(x: Tensor, conv_norm: ConvNorm, channels: tuple[int, ...], per_stage: int = 1) -> Tensor:
    """A stem without pooling and `per_stage` two-convolution blocks per stage; features are the last map's mean."""
    x = F.relu(conv_norm(x, "encoder.conv0.conv", "encoder.conv0.bn", channels[0]))
    for i, c in enumerate(channels, start=1):
        for j in range(1, per_stage + 1):
            block = f"encoder.layer{i}" if per_stage == 1 else f"encoder.layer{i}.block{j}"
            stride = 2 if i > 1 and j == 1 else 1
            y = F.relu(conv_norm(x, f"{block}.conv1", f"{block}.bn1", c, stride=stride))
            y = conv_norm(y, f"{block}.conv2", f"{block}.bn2", c)
            if stride > 1:  # the original's shortcut lacks the stride, and so cannot be added to y
                x = conv_norm(x, f"{block}.res_conv.conv", f"{block}.res_conv.bn", c, kernel=1, stride=stride)
            x = F.relu(x + y)
    return x.mean((2, 3))


ENCODERS = {
    "convnet4": partial(_convnet4, channels=32),
    "wide-convnet4": partial(_convnet4, channels=64),
    "resnet12": partial(_resnet12, channels=(64, 128, 256, 512)),
    "wide-resnet12": partial(_resnet12, channels=(64, 160, 320, 640)),
    "resnet18": partial(_resnet18, channels=(64, 128, 256, 512)),  # one block per stage, as the original means it
    "wide-resnet18": partial(_resnet18, channels=(64, 160, 320, 640)),
    "resnet18-standard": partial(_resnet18, channels=(64, 128, 256, 512), per_stage=2),  # He et al. 2015
}


@dataclass(frozen=True)
class ModelSpec:
    """An encoder with a linear head.

    Attributes:
        encoder: a key of `ENCODERS`.
        n_way: classes per episode.
        image_size: height and width in pixels; it fixes the width of ConvNet4's head.
        norm: a normalisation mode (see `forward`) for all layers, or for each of the encoder's blocks by name:
            `conv1` to `conv4`; `layer1` to `layer4`, and for ResNet-18 the stem `conv0`.
        temp: factor on the logits, or its initial value where `learn_temp` is set.
        learn_temp: make the factor a parameter of the outer loop; the inner loop never adapts it.
        channels: of the images; those of the original's data sets all have 3.
        width: channels of the encoder's first block, the others in proportion; 0 for its own.
    """

    encoder: str = "convnet4"
    n_way: int = 5
    image_size: int = 84
    norm: str | Mapping[str, str] = "batch"
    temp: float = 1.0
    learn_temp: bool = False
    channels: int = 3
    width: int = 0

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder {self.encoder!r}: choose one of {', '.join(ENCODERS)}")
        modes = {self.norm} if isinstance(self.norm, str) else set(self.norm.values())
        if not modes <= set(NORM_MODES):
            raise ValueError(f"norm {self.norm!r}: the modes are {', '.join(NORM_MODES)}")

    def encode(self, x: Tensor, conv_norm: ConvNorm) -> Tensor:
        """Features of images `x`, by way of `conv_norm`."""
        encode = ENCODERS[self.encoder]
        if self.width:
            own = encode.keywords["channels"]
            encode = partial(
                encode, channels=self.width if isinstance(own, int) else tuple(c * self.width // own[0] for c in own)
            )
        return encode(x, conv_norm)

    def mode(self, name: str) -> str:
        """Mode of the normalisation layer `name`, or of the layer that the parameter or statistic belongs to."""
        if isinstance(self.norm, str):
            return self.norm
        # ConvNet4's blocks lie a level deeper (`encoder.encoder.conv1`) than the residual ones (`encoder.layer1`).
        return self.norm[name.removeprefix("encoder.").removeprefix("encoder.").split(".")[0]]


@dataclass(frozen=True)
class InnerSpec:
    """The inner loop: gradient descent on the mean cross-entropy of the support set.

    Attributes:
        n_step: number of steps; 0 leaves the parameters as they are.
        encoder_lr: step size for the encoder.
        classifier_lr: step size for the head.
        momentum: heavy-ball factor; the velocity is zero at the start of each episode.
        weight_decay: added, times the parameter, to every gradient, those of normalisation and head included.
        first_order: hold the loss gradients constant. What weight decay and momentum add stays differentiable.
        frozen: parameters whose name contains one of these strings are not adapted, but still meta-learned.
        reset_classifier: set the head to zero before every batch of episodes.
    """

    n_step: int = 5
    encoder_lr: float = 0.01
    classifier_lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    first_order: bool = False
    frozen: tuple[str, ...] = ()
    reset_classifier: bool = False

    def adapts(self, name: str) -> bool:
        """Whether the inner loop updates the parameter `name`."""
        return name != TEMP and not any(part in name for part in self.frozen)


class Episodes(NamedTuple):
    """A batch of episodes; labels are int64 in `[0, way)`."""

    support_x: Tensor  # [episodes, way * shot, 3, height, width]
    support_y: Tensor  # [episodes, way * shot]
    query_x: Tensor  # [episodes, way * query, 3, height, width]
    query_y: Tensor  # [episodes, way * query]


class MetaGradient(NamedTuple):
    """What `meta_gradient` makes of one batch of episodes; nothing here carries a graph."""

    loss: Tensor  # []
    logits: Tensor  # [episodes, way * query, way]
    grads: Tensors  # by parameter name, not clipped
    stats: Tensors  # to carry on: `global` ones updated, `episodic` ones as they came
    episode_stats: list[Tensors]  # all statistics as each episode left them


def init_params(spec: ModelSpec, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensors:
    """Draws initial parameters, named and ordered as the original's.

    Convolutions: PyTorch's default in ConvNet4; in the ResNets Kaiming normal by fan-out for a leaky slope of 0.01,
    without bias. Normalisation: weight 1, bias 0. Head: PyTorch's default for a linear layer.
    """
    params, biased = {}, "convnet4" in spec.encoder

    def default(*shape: int, fan_in: int) -> Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=generator) / math.sqrt(fan_in)

    def create(x: Tensor, conv: str, norm: str, channels: int, kernel: int = 3, stride: int = 1) -> Tensor:
        shape, fan_in = (channels, x.shape[1], kernel, kernel), x.shape[1] * kernel**2
        if biased:
            params[f"{conv}.weight"] = default(*shape, fan_in=fan_in)
            params[f"{conv}.bias"] = default(channels, fan_in=fan_in)
        else:
            std = math.sqrt(2 / (1 + 0.01**2) / (channels * kernel**2))
            params[f"{conv}.weight"] = torch.empty(shape, dtype=dtype).normal_(0, std, generator=generator)
        params[f"{norm}.weight"] = torch.ones(channels, dtype=dtype)
        params[f"{norm}.bias"] = torch.zeros(channels, dtype=dtype)
        return x[:, :1, ::stride, ::stride].expand(-1, channels, -1, -1)  # of the convolution's shape, but free

    # A black image walks through the encoder, so that no shape has to be written down a second time.
    width = spec.encode(torch.zeros(1, spec.channels, spec.image_size, spec.image_size), create).shape[1]
    if spec.learn_temp:
        params[TEMP] = torch.tensor(spec.temp, dtype=dtype)
    params[HEAD[0]] = default(spec.n_way, width, fan_in=width)
    params[HEAD[1]] = default(spec.n_way, fan_in=width)
    return params


def init_stats(spec: ModelSpec, params: Tensors) -> Tensors:
    """Running means 0 and variances 1, each `[channels]`, of every normalisation layer whose mode is not `batch`."""
    stats = {}
    for name, value in params.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and value.ndim == 1 and spec.mode(layer) != "batch":  # only normalisation has such weights
            stats[f"{layer}.running_mean"] = torch.zeros_like(value, requires_grad=False)
            stats[f"{layer}.running_var"] = torch.ones_like(value, requires_grad=False)
    return stats


def forward(
    spec: ModelSpec, params: Tensors, stats: Tensors, x: Tensor, *, support: bool, training: bool
) -> tuple[Tensor, Tensors]:
    """Logits `[images, way]` of a support or a query set `x`, `[images, 3, height, width]`, and the updated statistics.

    How a layer normalises depends on its mode, on the set, and on whether this is meta-training or evaluation:

    | mode | support, training | support, evaluation | query |
    | --- | --- | --- | --- |
    | `batch` | batch moments | batch moments | batch moments |
    | `episodic` | batch moments, updates | batch moments, updates | running statistics |
    | `global` | batch moments, updates | running statistics | running statistics |

    Batches are normalised by their biased variance. An update moves the running statistics a tenth of the way to the
    batch's mean and unbiased variance, and no gradient flows through it.
    """
    stats = dict(stats)

    def conv_norm(x: Tensor, conv: str, norm: str, channels: int, kernel: int = 3, stride: int = 1) -> Tensor:
        x = F.conv2d(x, params[f"{conv}.weight"], params.get(f"{conv}.bias"), stride, padding=kernel // 2)
        weight, bias, mode = params[f"{norm}.weight"], params[f"{norm}.bias"], spec.mode(norm)
        if mode == "batch":
            return F.batch_norm(x, None, None, weight, bias, training=True)
        mean, var = stats[f"{norm}.running_mean"], stats[f"{norm}.running_var"]
        update = support and (training or mode == "episodic")
        if update:  # PyTorch updates in place, so give it copies: graphs and the caller keep the old values
            mean, var = stats[f"{norm}.running_mean"], stats[f"{norm}.running_var"] = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, weight, bias, training=update, momentum=0.1)

    features = spec.encode(x, conv_norm)
    logits = F.linear(features, params[HEAD[0]], params[HEAD[1]])
    return params.get(TEMP, spec.temp) * logits, stats


def adapt(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, x: Tensor, y: Tensor, *, training: bool = True
) -> tuple[Tensors, Tensors]:
    """Fits `params` to the support images `x`, `[way * shot, 3, height, width]`, of labels `y`, `[way * shot]`.

    Returns the adapted parameters and the statistics after the last support pass; those of `episodic` layers start
    afresh, at mean 0 and variance 1. In training the adapted parameters are differentiable in `params`, which must
    require gradients (see `start`).
    """
    fresh = {name: value for name, value in init_stats(spec, params).items() if spec.mode(name) == "episodic"}
    params, stats, velocity = dict(params), stats | fresh, {}
    names, second_order = [name for name in params if inner.adapts(name)], training and not inner.first_order
    for _ in range(inner.n_step):
        logits, stats = forward(spec, params, stats, x, support=True, training=training)
        loss, adapted = F.cross_entropy(logits, y), [params[name] for name in names]
        grads = torch.autograd.grad(loss, adapted, create_graph=second_order) if names else ()
        for name, grad in zip(names, grads, strict=True):
            if inner.weight_decay:
                grad = grad + inner.weight_decay * params[name]
            if inner.momentum:
                grad = velocity[name] = grad + inner.momentum * velocity.get(name, 0)
            lr = inner.encoder_lr if name.startswith("encoder.") else inner.classifier_lr
            params[name] = params[name] - lr * grad
    return params, stats


def episode_loss(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episode: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensors]:
    """Adapts to one episode (`Episodes` without its leading axis) and asks its queries, in training mode.

    Returns the mean query loss, the query logits `[way * query, way]`, and the statistics that the episode leaves.
    """
    support_x, support_y, query_x, query_y = episode
    adapted, stats = adapt(spec, inner, params, stats, support_x, support_y)
    logits, stats = forward(spec, adapted, stats, query_x, support=False, training=True)
    return F.cross_entropy(logits, query_y), logits, stats


def start(inner: InnerSpec, params: Tensors) -> Tensors:
    """The point to differentiate at: leaves that share the parameters' memory; the head zero if it is to be reset."""
    reset = HEAD if inner.reset_classifier else ()
    point = {name: torch.zeros_like(p) if name in reset else p.detach() for name, p in params.items()}
    return {name: p.requires_grad_() for name, p in point.items()}


def meta_loss(spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes) -> Tensor:
    """Mean cross-entropy over the queries of all episodes, differentiable in `params` (those of `start`)."""
    return torch.stack([episode_loss(spec, inner, params, stats, e)[0] for e in zip(*episodes, strict=True)]).mean()


def meta_gradient(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes
) -> MetaGradient:
    """Gradient of `meta_loss` with respect to the parameters.

    Episodes are differentiated one at a time, which frees each one's graph before the next is built: the loss is a
    mean over episodes of equal size, so its gradient is the mean of theirs.

    Every episode starts from the same `stats`, and the updates of `global` layers are averaged. The original
    overwrites these statistics episode by episode while earlier graphs still need them; with one episode both agree.
    """
    leaves, count = start(inner, params), len(episodes.support_x)
    grads, losses, logits, episode_stats = dict.fromkeys(leaves, 0), [], [], []
    for episode in zip(*episodes, strict=True):
        loss, episode_logits, after = episode_loss(spec, inner, leaves, stats, episode)
        for name, grad in zip(leaves, torch.autograd.grad(loss / count, list(leaves.values())), strict=True):
            grads[name] = grads[name] + grad
        losses.append(loss.detach())
        logits.append(episode_logits.detach())
        episode_stats.append(after)
    carried = {
        name: torch.stack([after[name] for after in episode_stats]).mean(0) if spec.mode(name) == "global" else value
        for name, value in stats.items()
    }
    return MetaGradient(torch.stack(losses).mean(), torch.stack(logits), grads, carried, episode_stats)


def evaluate(spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes) -> Tensor:
    """Query logits, `[episodes, way * query, way]`, in evaluation mode; `stats` are used but never updated."""
    leaves, logits = start(inner, params), []
    for support_x, support_y, query_x, _ in zip(*episodes, strict=True):
        adapted, after = adapt(spec, inner, leaves, stats, support_x, support_y, training=False)
        with torch.no_grad():
            logits.append(forward(spec, adapted, after, query_x, support=False, training=False)[0])
    return torch.stack(logits)


def outer_step(
    spec: ModelSpec, inner: InnerSpec, optimiser: Optimizer, params: Tensors, stats: Tensors, episodes: Episodes
) -> MetaGradient:
    """One update of `params` in place, by an optimiser over `params.values()` (see `OPTIMISERS`).

    The result's `loss` is that before the update; its `stats` are those to carry on.
    """
    with torch.no_grad():
        for name in HEAD if inner.reset_classifier else ():
            params[name].zero_()
    result = meta_gradient(spec, inner, params, stats, episodes)
    for name, value in params.items():
        value.grad = result.grads[name].clamp(-CLIP, CLIP)
    optimiser.step()
    return result
