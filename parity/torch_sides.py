"""PyTorch's sides of the benchmark, in training and at test: the plain reference, and MAML written with torch.func.

The latter takes an `nn.Module` as it is (`functional_call`) and differentiates functions of its parameters
(`torch.func.grad`), which torch.compile can make one program of.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from parity import reference
from parity.bench import Row, UnavailableError
from parity.turns import Side, images, peak_above_now

Tensors = dict[str, Tensor]
Gradient = Callable[..., Tensors]  # of parameters, and a task or a batch of them

RATE = 0.01  # of the inner loop


class _Form(NamedTuple):
    """Of a convolutional network: how many blocks, and whether a convolution keeps the size of images."""

    blocks: int
    padded: bool


_FORMS = {
    "convnet4": _Form(4, True),
    "wide-convnet4": _Form(4, True),
    "parity.functorch_net:ConvNet3": _Form(3, False),
}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _peak() -> Callable[[], float]:
    """What `Side.peak_mib` is on this device."""
    return peak_above_now() if _device() == "cpu" else lambda: torch.cuda.max_memory_allocated() / 2**20


def _finish() -> None:
    """Waits for the device."""
    if _device() == "cuda":
        torch.cuda.synchronize()


def plain(row: Row) -> Side:
    """The PyTorch reference's meta-steps."""
    peak = _peak()
    spec, inner, params = _plain(row)
    optimiser = reference.OPTIMISERS["adam"](params.values(), lr=1e-3)
    episodes = _episodes(row)

    def turn():
        for _ in range(row.turn):
            reference.outer_step(spec, inner, optimiser, params, {}, episodes)
        _finish()

    return Side(turn, peak)


def _plain(row: Row) -> tuple[reference.ModelSpec, reference.InnerSpec, Tensors]:
    """The reference's model and inner loop of a row, and parameters on the device."""
    spec = reference.ModelSpec(row.encoder, row.way, row.side, channels=row.channels, width=row.width)
    inner = reference.InnerSpec(row.steps, first_order=row.first_order, frozen=("bn",) if row.frozen else ())
    params = reference.init_params(spec, torch.Generator().manual_seed(0))
    return spec, inner, {name: p.to(_device()) for name, p in params.items()}


def _episodes(row: Row) -> reference.Episodes:
    return reference.Episodes(*(torch.as_tensor(a, device=_device()) for a in images(row, channels_first=True)))


def network(row: Row) -> nn.Module:
    """A row's convolutional network, which normalises by the moments of the batch; parameters as the reference orders.

    Raises:
      UnavailableError: the row's encoder is another kind of network.
    """
    if row.encoder not in _FORMS:
        raise UnavailableError(f"{row.encoder} is not written for torch.func here")
    form, side, layers = _FORMS[row.encoder], row.side, []
    for i in range(form.blocks):
        conv = nn.Conv2d(row.width if i else row.channels, row.width, 3, padding=int(form.padded))
        norm = nn.BatchNorm2d(row.width, track_running_stats=False)
        layers += [conv, norm, nn.ReLU(), nn.MaxPool2d(2)]
        side = (side if form.padded else side - 2) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(row.width * side**2, row.way))


def adapter(row: Row, net: nn.Module) -> Callable[[Tensors, Tensor, Tensor], Tensors]:
    """The inner loop, as a function of the parameters, support images and their labels.

    Args:
      row: which says how many steps there are, and what they adapt.
      net: the model; its own parameters are not used.

    Returns:
      Of `(params, support_x, support_y)`, the parameters after the last step, a dict as `params` is.
    """
    normalises = {name for name, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)}

    def adapt(params, x, y):
        frozen = {n: p for n, p in params.items() if row.frozen and n.rpartition(".")[0] in normalises}
        adapted = {n: p for n, p in params.items() if n not in frozen}
        loss = lambda adapted: F.cross_entropy(functional_call(net, {**frozen, **adapted}, (x,)), y)  # noqa: E731
        for _ in range(row.steps):
            steepest = grad(loss)(adapted)
            if row.first_order:
                steepest = {n: g.detach() for n, g in steepest.items()}
            adapted = {n: p - RATE * steepest[n] for n, p in adapted.items()}
        return {**frozen, **adapted}

    return adapt


def task_gradient(row: Row, net: nn.Module) -> Gradient:
    """The gradient of the query loss after the inner loop, as a function of the parameters and one task.

    Args:
      row: as `adapter` takes it.
      net: the model; its own parameters are not used.

    Returns:
      Of `(params, support_x, support_y, query_x, query_y)`, a dict as `params` is.
    """
    adapt = adapter(row, net)

    def query_loss(params, support_x, support_y, query_x, query_y):
        adapted = adapt(params, support_x, support_y)
        return F.cross_entropy(functional_call(net, adapted, (query_x,)), query_y)

    return grad(query_loss)


def one_by_one(gradient: Gradient, params: Tensors, episodes: reference.Episodes) -> Tensors:
    """The meta-gradient: the mean over tasks, taken one after the other."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for task in zip(*episodes, strict=True):
        for name, g in gradient(params, *task).items():
            total[name] += g / len(episodes.support_x)
    return total


def side_by_side(gradient: Gradient, params: Tensors, episodes: reference.Episodes) -> Tensors:
    """The same by `torch.vmap`, as functorch's example has it."""
    every = vmap(gradient, in_dims=(None, 0, 0, 0, 0))(params, *episodes)
    return {name: g.mean(0) for name, g in every.items()}


def plain_evaluation(row: Row) -> Side:
    """The reference's test: it adapts to one task after the other, and its queries are counted."""
    peak = _peak()
    spec, inner, params = _plain(row)
    episodes = _episodes(row)

    def turn():
        for _ in range(row.turn):
            _accuracies(reference.evaluate(spec, inner, params, {}, episodes), episodes)
        _finish()

    return Side(turn, peak)


def functional_evaluation(row: Row, at_once: bool = False) -> Side:
    """The same by torch.func; `at_once` takes all tasks of a meta-step side by side, by `torch.vmap`.

    Raises:
      UnavailableError: the row has no such network.
    """
    peak = _peak()
    torch.manual_seed(0)
    net, episodes = network(row).to(_device()), _episodes(row)
    answer = task_logits(row, net)
    every = vmap(answer, in_dims=(None, 0, 0, 0)) if at_once else functools.partial(_logits_one_by_one, answer)

    def turn():
        with torch.no_grad():
            for _ in range(row.turn):
                _accuracies(every(_parameters(net), *episodes[:3]), episodes)
        _finish()

    return Side(turn, peak)


def task_logits(row: Row, net: nn.Module) -> Callable[..., Tensor]:
    """The query logits after the inner loop, as a function of the parameters and one task.

    Args:
      row: as `adapter` takes it.
      net: the model; its own parameters are not used.

    Returns:
      Of `(params, support_x, support_y, query_x)`, logits `[way * query, way]`.
    """
    adapt = adapter(row, net)
    return lambda params, x, y, query_x: functional_call(net, adapt(params, x, y), (query_x,))


def _logits_one_by_one(answer: Callable[..., Tensor], params: Tensors, *tasks: Tensor) -> Tensor:
    return torch.stack([answer(params, *task) for task in zip(*tasks, strict=True)])


def _accuracies(logits: Tensor, episodes: reference.Episodes) -> list[float]:
    """Of each task, read back as a test has to."""
    return (logits.argmax(-1) == episodes.query_y).float().mean(-1).tolist()


def functional(row: Row, at_once: bool = False, compiled: bool = False) -> Side:
    """Meta-steps by torch.func.

    Args:
      row: of the benchmark.
      at_once: all tasks `side_by_side`, not `one_by_one`.
      compiled: a task's gradient by torch.compile.

    Raises:
      UnavailableError: the row has no such network, or it does not compile here.
    """
    peak = _peak()
    torch.manual_seed(0)
    net, episodes = network(row).to(_device()), _episodes(row)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    gradient = task_gradient(row, net)
    if compiled:
        gradient = _compiled(gradient, _parameters(net), [part[0] for part in episodes])
    meta_gradient = functools.partial(side_by_side if at_once else one_by_one, gradient)

    def turn():
        for _ in range(row.turn):
            meta_step(net, optimiser, meta_gradient, episodes)
        _finish()

    return Side(turn, peak)


def meta_step(
    net: nn.Module, optimiser: torch.optim.Optimizer, meta_gradient: Gradient, episodes: reference.Episodes
) -> None:
    """Changes a module's parameters by one step along a meta-gradient, clipped as the reference clips it."""
    found = meta_gradient(_parameters(net), episodes)
    for name, p in net.named_parameters():
        p.grad = found[name].clamp(-reference.CLIP, reference.CLIP)
    optimiser.step()


def _parameters(net: nn.Module) -> Tensors:
    """A module's parameters, in the same memory, as torch.func takes them: without a graph of their own."""
    return {name: p.detach() for name, p in net.named_parameters()}


def _compiled(gradient: Gradient, params: Tensors, task: list[Tensor]) -> Gradient:
    """The gradient as one program, compiled by a first call."""
    compiled = torch.compile(gradient, fullgraph=True, dynamic=False)
    try:
        compiled(params, *task)
    except Exception as error:  # whatever of PyTorch's many parts, or the C++ compiler, it fails in
        reason = " ".join(str(error).split())[:200]
        raise UnavailableError(f"torch.compile fails with {type(error).__name__}: {reason}") from error
    return compiled
