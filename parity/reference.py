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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

Tensors = dict[str, Tensor]
Film = Callable[[Tensor], Tensor]  # scales and shifts the channels of images
# A convolution and its normalisation: (x, name of conv, name of norm, channels, kernel=3, stride=1) -> x.
# `forward` passes one that computes, `init_params` one that creates the parameters as it meets them.
ConvNorm = Callable[..., Tensor]

NORM_MODES = ("batch", "episodic", "global", "per_step", "per_step_batch", "metabn", "tasknorm")
LASTING = ("global", "per_step")  # modes whose statistics outlive an episode
TEMP = "classifier.temp"
HEAD = ("classifier.linear.weight", "classifier.linear.bias")
CLIP = 10.0  # every entry of the meta-gradient is clipped to ±CLIP before an outer step
# Called with (params.values(), lr=..., weight_decay=...); PyTorch adds weight decay to the gradient in all three.
OPTIMISERS = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9), "rmsprop": torch.optim.RMSprop}


def _convnet4(x: Tensor, conv_norm: ConvNorm, channels: int, film: Film | None = None) -> Tensor:
    """Four times conv, normalise, ReLU, pool; features are the flattened last map, channels first.

    In CAVIA the third block pools, calls `film`, and then comes its ReLU.
    """
    for i in range(1, 5):
        block = f"encoder.encoder.conv{i}"
        x = conv_norm(x, f"{block}.conv", f"{block}.bn", channels)
        x = F.relu(film(F.max_pool2d(x, 2))) if film and i == 3 else F.max_pool2d(F.relu(x), 2)
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
        summed_loss: multiply every loss by the number of ways, as the official TensorFlow code of MAML does.
        head: where the head starts in an episode: `learned`; `shared`, the one row that is learned for every class
            (arXiv 2106.16245); or `prototypes`, 2 c and -|c|² of the class means c of the support set's features
            (arXiv 1903.03096).
    """

    encoder: str = "convnet4"
    n_way: int = 5
    image_size: int = 84
    norm: str | Mapping[str, str] = "batch"
    temp: float = 1.0
    learn_temp: bool = False
    channels: int = 3
    width: int = 0
    summed_loss: bool = False
    head: str = "learned"

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder {self.encoder!r}: choose one of {', '.join(ENCODERS)}")
        modes = {self.norm} if isinstance(self.norm, str) else set(self.norm.values())
        if not modes <= set(NORM_MODES):
            raise ValueError(f"norm {self.norm!r}: the modes are {', '.join(NORM_MODES)}")

    def encode(self, x: Tensor, conv_norm: ConvNorm, film: Film | None = None) -> Tensor:
        """Features of images `x`, by way of `conv_norm`, and with ConvNet4 of `film`."""
        encode = partial(ENCODERS[self.encoder], **({"film": film} if film else {}))
        if self.width:
            own = encode.keywords["channels"]
            encode = partial(
                encode, channels=self.width if isinstance(own, int) else tuple(c * self.width // own[0] for c in own)
            )
        return encode(x, conv_norm)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, times the number of ways if it is to be summed over classes."""
        return F.cross_entropy(logits, labels) * (self.n_way if self.summed_loss else 1)

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
        optimiser: `sgd` as above; `rmsprop` or `adam`, with PyTorch's constants, but √(v + ε²) for √v + ε.
        epsilon: ε.
        rates_per_step: learned rates have a leading axis over steps; the last ones are used beyond it.
        positive_rates: learned rates are given as logarithms.
        proximal: times the way from the start is added to every gradient, before all else.
        context: number of context parameters, `encoder.film.context`, which are zero at the start of each episode.

    Learned rates are parameters named `lr.` and then `encoder` or `classifier`, or the name of a parameter; they have
    no axes beside that of steps, or those of the parameter. Meta-Curvature's matrices are named `mc.`, the name of a
    parameter, and `.out`, `.in`, `.window`, or `.scale` for factors.
    """

    n_step: int = 5
    encoder_lr: float = 0.01
    classifier_lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    first_order: bool = False
    frozen: tuple[str, ...] = ()
    reset_classifier: bool = False
    optimiser: str = "sgd"
    epsilon: float = 1e-8
    rates_per_step: bool = False
    positive_rates: bool = False
    proximal: float = 0.0
    context: int = 0

    def adapts(self, name: str) -> bool:
        """Whether the inner loop updates the parameter `name`."""
        return name != TEMP and not name.startswith(("lr.", "mc.")) and not any(part in name for part in self.frozen)

    def rate(self, params: Tensors, name: str, step: int) -> Tensor | float:
        """The step size for the parameter `name` at a step, counted from 0."""
        group = name.split(".")[0]
        learned = params.get(f"lr.{name}", params.get(f"lr.{group}"))
        if learned is None:
            return self.encoder_lr if group == "encoder" else self.classifier_lr
        if self.rates_per_step:
            learned = learned[min(step, len(learned) - 1)]
        return learned.exp() if self.positive_rates else learned

    def direction(self, memory: dict[str, Tensor], name: str, grad: Tensor, step: int) -> Tensor:
        """What the optimiser makes of a gradient; `memory` is its state in this episode, at first empty."""
        if self.optimiser == "sgd":
            if self.momentum:
                grad = memory[name] = grad + self.momentum * memory.get(name, 0)
            return grad
        decay = {"rmsprop": 0.99, "adam": 0.999}[self.optimiser]
        second = memory[f"{name}/v"] = decay * memory.get(f"{name}/v", 0) + (1 - decay) * grad**2
        if self.optimiser == "rmsprop":
            return grad / (second + self.epsilon**2).sqrt()
        first = memory[f"{name}/m"] = 0.9 * memory.get(f"{name}/m", 0) + 0.1 * grad
        first, second = first / (1 - 0.9 ** (step + 1)), second / (1 - decay ** (step + 1))
        return first / (second + self.epsilon**2).sqrt()


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
    """Running means 0 and variances 1 of every normalisation layer that has them, shaped as its weight."""
    stats = {}
    for name, value in params.items():
        layer, _, kind = name.rpartition(".")
        normalises = kind == "weight" and layer.rpartition(".")[2].startswith("bn")
        if normalises and spec.mode(layer) in ("episodic", *LASTING):
            stats[f"{layer}.running_mean"] = torch.zeros_like(value, requires_grad=False)
            stats[f"{layer}.running_var"] = torch.ones_like(value, requires_grad=False)
    return stats


def forward(
    spec: ModelSpec, params: Tensors, stats: Tensors, x: Tensor, *, support: bool, training: bool, step: int = 0
) -> tuple[Tensor, Tensors]:
    """Logits `[images, way]` of a support or a query set `x`, `[images, 3, height, width]`, and the updated statistics.

    Without a head among the parameters, features in place of logits.

    How a layer normalises depends on its mode, on the set, and on whether this is meta-training or evaluation:

    | mode | support, training | support, evaluation | query |
    | --- | --- | --- | --- |
    | `batch` | batch moments | batch moments | batch moments |
    | `episodic` | batch moments, updates | batch moments, updates | running statistics |
    | `global` | batch moments, updates | running statistics | running statistics |
    | `per_step` | batch moments, updates | running statistics | as on the support set |
    | `per_step_batch` | batch moments | batch moments | batch moments |
    | `metabn` | batch moments | batch moments | those of the support set |
    | `tasknorm` | batch moments mixed with each image's | the same | support set's mixed with each image's |

    In the `per_step` modes (MAML++, arXiv 1810.09502) parameters and statistics have a leading axis, of which the inner
    step `step` picks a row. In the last two (arXiv 2003.03284) a support pass leaves its moments among the statistics
    for the query pass, differentiable, and the weight of them in the mixture is sigmoid(scale * images + offset).

    Batches are normalised by their biased variance. An update moves the running statistics a tenth of the way to the
    batch's mean and unbiased variance, and no gradient flows through it.
    """
    stats = dict(stats)

    def conv_norm(x: Tensor, conv: str, norm: str, channels: int, kernel: int = 3, stride: int = 1) -> Tensor:
        x = F.conv2d(x, params[f"{conv}.weight"], params.get(f"{conv}.bias"), stride, padding=kernel // 2)
        if f"{conv}.warp" in params:  # a T-net's, a linear layer from channels to channels
            x = torch.einsum("nchw,oc->nohw", x, params[f"{conv}.warp"])
        weight, bias, mode = params[f"{norm}.weight"], params[f"{norm}.bias"], spec.mode(norm)
        row = slice(None)
        if mode in ("per_step", "per_step_batch"):
            row = min(step, len(weight) - 1)
        if mode in ("batch", "per_step_batch"):
            return F.batch_norm(x, None, None, weight[row], bias[row], training=True)
        if mode in ("metabn", "tasknorm"):
            return _task_norm(params, stats, x, norm, support=support, mix=mode == "tasknorm")
        mean, var = stats[f"{norm}.running_mean"], stats[f"{norm}.running_var"]
        update = {"episodic": support, "global": support and training, "per_step": training}[mode]
        if update:  # PyTorch updates in place, so give it copies: graphs and the caller keep the old values
            mean, var = stats[f"{norm}.running_mean"], stats[f"{norm}.running_var"] = mean.clone(), var.clone()
        return F.batch_norm(x, mean[row], var[row], weight[row], bias[row], training=update, momentum=0.1)

    features = spec.encode(x, conv_norm, partial(_film, params) if "encoder.film.context" in params else None)
    if HEAD[0] not in params:
        return features, stats
    logits = F.linear(features, params[HEAD[0]], params[HEAD[1]])
    return params.get(TEMP, spec.temp) * logits, stats


def head_at_start(spec: ModelSpec, params: Tensors, stats: Tensors, x: Tensor, y: Tensor) -> Tensors:
    """The head's parameters that an episode of support images `x` and labels `y` starts from; see `ModelSpec.head`."""
    if spec.head == "shared":
        return {name: params[name].expand(spec.n_way, *params[name].shape[1:]) for name in HEAD}
    if spec.head == "prototypes":
        features, _ = forward(spec, params, stats, x, support=True, training=False)
        means = torch.stack([features[y == c].mean(0) for c in range(spec.n_way)])
        return {HEAD[0]: 2 * means, HEAD[1]: -(means**2).sum(1)}
    return {}


def _film(params: Tensors, x: Tensor) -> Tensor:
    """CAVIA's layer (arXiv 1810.03642): scale and shift are linear in the context parameters."""
    by_context = F.linear(params["encoder.film.context"], params["encoder.film.weight"]).chunk(2)
    scale, shift = (params[f"encoder.film.{n}"] + part for n, part in zip(("scale", "shift"), by_context, strict=True))
    return scale[:, None, None] * x + shift[:, None, None]


def curve(params: Tensors, name: str, grad: Tensor) -> Tensor:
    """Meta-Curvature (arXiv 1902.03356): a gradient times a matrix for each of its modes, if it has any."""
    if f"mc.{name}.scale" in params:
        return params[f"mc.{name}.scale"] * grad
    if f"mc.{name}.out" not in params:
        return grad
    flat = grad.flatten(2) if grad.ndim > 2 else grad[..., None]
    flat = torch.einsum("oiw,po,qi->pqw", flat, params[f"mc.{name}.out"], params[f"mc.{name}.in"])
    if f"mc.{name}.window" in params:
        flat = torch.einsum("oiw,vw->oiv", flat, params[f"mc.{name}.window"])
    return flat.reshape(grad.shape)


def _task_norm(params: Tensors, stats: Tensors, x: Tensor, norm: str, *, support: bool, mix: bool) -> Tensor:
    """Normalises by the moments of the support set, left in `stats`, mixed with each image's own; eps as elsewhere."""
    if support:
        stats[f"{norm}.context_mean"], stats[f"{norm}.context_var"] = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        stats[f"{norm}.context_size"] = torch.tensor(float(len(x)), dtype=x.dtype)
    mean, var, size = (stats[f"{norm}.context_{kind}"] for kind in ("mean", "var", "size"))
    mean, var = mean[:, None, None], var[:, None, None]
    if mix:
        alpha = torch.sigmoid(params[f"{norm}.context_scale"] * size + params[f"{norm}.context_offset"])
        own, own_var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        both = alpha * mean + (1 - alpha) * own
        var = alpha * (var + (mean - both) ** 2) + (1 - alpha) * (own_var + (own - both) ** 2)
        mean = both
    weight, bias = (params[f"{norm}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return weight * (x - mean) / (var + 1e-5).sqrt() + bias


def adapt(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, x: Tensor, y: Tensor, *, training: bool = True
) -> tuple[Tensors, Tensors]:
    """Fits `params` to the support images `x`, `[way * shot, 3, height, width]`, of labels `y`, `[way * shot]`.

    Returns the adapted parameters and the statistics after the last support pass; those of `episodic` layers start
    afresh, at mean 0 and variance 1. In training the adapted parameters are differentiable in `params`, which must
    require gradients (see `start`).
    """
    *_, end = trajectory(spec, inner, params, stats, x, y, training=training)
    return end


def trajectory(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, x: Tensor, y: Tensor, *, training: bool = True
) -> Iterator[tuple[Tensors, Tensors]]:
    """What `adapt` returns for no step, for one, and so on up to `n_step`."""
    fresh = {name: value for name, value in init_stats(spec, params).items() if spec.mode(name) == "episodic"}
    if inner.context:
        zeros = torch.zeros(inner.context, dtype=params[HEAD[0]].dtype, requires_grad=True)
        params = params | {"encoder.film.context": zeros}
    origin = params | head_at_start(spec, params, stats | fresh, x, y)
    params, stats, memory = dict(origin), stats | fresh, {}
    names, second_order = [name for name in params if inner.adapts(name)], training and not inner.first_order
    # Nodes of their own in the graph: to an inner gradient the head is a parameter, whatever it was made of.
    params |= {name: params[name].view_as(params[name]) for name in names}
    yield dict(params), stats
    for k in range(inner.n_step):
        logits, stats = forward(spec, params, stats, x, support=True, training=training, step=k)
        loss, adapted = spec.loss(logits, y), [params[name] for name in names]
        grads = torch.autograd.grad(loss, adapted, create_graph=second_order) if names else ()
        for name, grad in zip(names, grads, strict=True):
            if inner.proximal:
                grad = grad + inner.proximal * (params[name] - origin[name])
            grad = curve(params, name, grad)
            if inner.weight_decay:
                grad = grad + inner.weight_decay * params[name]
            params[name] = params[name] - inner.rate(params, name, k) * inner.direction(memory, name, grad, k)
        yield dict(params), stats


def query(
    spec: ModelSpec, params: Tensors, stats: Tensors, support_x: Tensor, x: Tensor, *, training: bool, steps: int
) -> tuple[Tensor, Tensors]:
    """Query logits and statistics after `steps` steps have led to `params`: those of the last, as far as they differ.

    The support set goes before, for layers that normalise by its moments.
    """
    step, modes = max(steps - 1, 0), {spec.norm} if isinstance(spec.norm, str) else set(spec.norm.values())
    if modes & {"metabn", "tasknorm"}:
        _, after = forward(spec, params, stats, support_x, support=True, training=training, step=step)
        stats = stats | {name: value for name, value in after.items() if ".context_" in name}
    return forward(spec, params, stats, x, support=False, training=training, step=step)


def episode_loss(
    spec: ModelSpec,
    inner: InnerSpec,
    params: Tensors,
    stats: Tensors,
    episode: tuple[Tensor, ...],
    weights: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensors]:
    """Adapts to one episode (`Episodes` without its leading axis) and asks its queries, in training mode.

    Returns the mean query loss (with `weights`, one per step, the weighted sum of those after each step, as in MAML++),
    the query logits `[way * query, way]` after the last step, and the statistics that the episode leaves.
    """
    support_x, support_y, query_x, query_y = episode
    losses = []
    for k, (adapted, after) in enumerate(trajectory(spec, inner, params, stats, support_x, support_y)):
        if weights or k == inner.n_step:
            logits, end = query(spec, adapted, after, support_x, query_x, training=True, steps=k)
            losses.append(spec.loss(logits, query_y))
    loss = sum(w * x for w, x in zip(weights, losses[1:], strict=True)) if weights else losses[-1]
    return loss, logits, end


def start(inner: InnerSpec, params: Tensors) -> Tensors:
    """The point to differentiate at: leaves that share the parameters' memory; the head zero if it is to be reset."""
    reset = HEAD if inner.reset_classifier else ()
    point = {name: torch.zeros_like(p) if name in reset else p.detach() for name, p in params.items()}
    return {name: p.requires_grad_() for name, p in point.items()}


def meta_loss(spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes) -> Tensor:
    """Mean cross-entropy over the queries of all episodes, differentiable in `params` (those of `start`)."""
    return torch.stack([episode_loss(spec, inner, params, stats, e)[0] for e in zip(*episodes, strict=True)]).mean()


def meta_gradient(
    spec: ModelSpec,
    inner: InnerSpec,
    params: Tensors,
    stats: Tensors,
    episodes: Episodes,
    weights: Sequence[float] = (),
) -> MetaGradient:
    """Gradient of `meta_loss` with respect to the parameters; `weights` as in `episode_loss`.

    Episodes are differentiated one at a time, which frees each one's graph before the next is built: the loss is a
    mean over episodes of equal size, so its gradient is the mean of theirs.

    Every episode starts from the same `stats`, and the updates of `global` layers are averaged. The original
    overwrites these statistics episode by episode while earlier graphs still need them; with one episode both agree.
    """
    leaves, count = start(inner, params), len(episodes.support_x)
    grads, losses, logits, episode_stats = dict.fromkeys(leaves, 0), [], [], []
    for episode in zip(*episodes, strict=True):
        loss, episode_logits, after = episode_loss(spec, inner, leaves, stats, episode, weights)
        found = torch.autograd.grad(loss / count, list(leaves.values()))
        for name, grad in zip(leaves, found, strict=True):
            grads[name] = grads[name] + grad
        losses.append(loss.detach())
        logits.append(episode_logits.detach())
        episode_stats.append(after)
    carried = {
        name: torch.stack([after[name] for after in episode_stats]).mean(0) if spec.mode(name) in LASTING else value
        for name, value in stats.items()
    }
    return MetaGradient(torch.stack(losses).mean(), torch.stack(logits), grads, carried, episode_stats)


def evaluate(spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes) -> Tensor:
    """Query logits, `[episodes, way * query, way]`, in evaluation mode; `stats` are used but never updated."""
    leaves, logits = start(inner, params), []
    for support_x, support_y, query_x, _ in zip(*episodes, strict=True):
        adapted, after = adapt(spec, inner, leaves, stats, support_x, support_y, training=False)
        with torch.no_grad():
            logits.append(query(spec, adapted, after, support_x, query_x, training=False, steps=inner.n_step)[0])
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
