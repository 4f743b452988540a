"""Meta-gradients of methods that do not differentiate through the inner loop, in plain PyTorch; see `reference`."""

import torch
from torch import Tensor

from parity.reference import Episodes, InnerSpec, MetaGradient, ModelSpec, Tensors, adapt, forward, query, start


def reptile_gradient(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes
) -> MetaGradient:
    """Reptile's: the mean over episodes of the parameters before adaptation less those after it."""
    leaves, count = start(inner, params), len(episodes.support_x)
    grads, losses, logits = dict.fromkeys(leaves, 0), [], []
    for episode in zip(*episodes, strict=True):
        adapted, after = adapt(spec, inner, leaves, stats, *episode[:2], training=True)
        for name, value in leaves.items():
            grads[name] = grads[name] + (value - adapted[name]).detach() / count
        asked = query(spec, adapted, after, episode[0], episode[2], training=True, steps=inner.n_step)[0].detach()
        losses.append(spec.loss(asked, episode[3]))
        logits.append(asked)
    return MetaGradient(torch.stack(losses).mean(), torch.stack(logits), grads, {}, [])


def implicit_gradient(
    spec: ModelSpec, inner: InnerSpec, params: Tensors, stats: Tensors, episodes: Episodes
) -> MetaGradient:
    """That of iMAML (arXiv 1909.04630), by the whole matrices of second derivatives and a dense solver.

    With the support loss L at the adapted parameters φ, of which those that did not adapt are ψ, and the query loss Q:
    (1 + L_φφ / λ) u = Q_φ gives the gradient u of the former, and Q_ψ - L_ψφ u / λ that of the latter.
    """
    grads, losses, logits = dict.fromkeys(params, 0), [], []
    moving = [name for name in params if inner.adapts(name)]
    still = [name for name in params if name not in moving]
    for episode in zip(*episodes, strict=True):
        adapted, after = adapt(spec, inner, start(inner, params), stats, *episode[:2], training=True)
        point = {name: value.detach().requires_grad_() for name, value in adapted.items()}
        last = max(inner.n_step - 1, 0)
        seen, _ = forward(spec, point, after, episode[0], support=True, training=True, step=last)
        asked, _ = query(spec, point, after, episode[0], episode[2], training=True, steps=inner.n_step)
        loss = spec.loss(asked, episode[3])
        by_query = dict(zip(point, torch.autograd.grad(loss, list(point.values())), strict=True))
        rows = _second_derivatives(spec.loss(seen, episode[1]), [point[n] for n in moving], list(point.values()))
        columns = dict(zip(point, rows, strict=True))
        hessian = torch.cat([columns[n] for n in moving], 1)
        wanted = torch.cat([by_query[n].flatten() for n in moving])
        u = torch.linalg.solve(torch.eye(len(wanted), dtype=wanted.dtype) + hessian / inner.proximal, wanted)
        sizes = [point[n].numel() for n in moving]
        found = {n: part.view_as(point[n]) for n, part in zip(moving, u.split(sizes), strict=True)}
        found |= {n: by_query[n] - (u @ columns[n]).view_as(point[n]) / inner.proximal for n in still}
        for name, value in found.items():
            grads[name] = grads[name] + value / len(episodes.support_x)
        losses.append(loss.detach())
        logits.append(asked.detach())
    return MetaGradient(torch.stack(losses).mean(), torch.stack(logits), grads, {}, [])


def _second_derivatives(loss: Tensor, rows: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
    """For each of `columns`, the derivatives by all elements of `rows`, in one axis, and by its own, in another."""
    slopes = torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, rows, create_graph=True)])
    found = [torch.autograd.grad(slope, columns, retain_graph=True) for slope in slopes]
    return [torch.stack([row[i].flatten() for row in found]) for i in range(len(columns))]
