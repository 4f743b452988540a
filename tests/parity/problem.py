"""Small problems for the PyTorch reference, and how to compare what comes of them."""

import torch

from parity.reference import Episodes, ModelSpec, init_params, init_stats

FIRST_CONV = "encoder.encoder.conv1.conv.weight"
FIRST_MEAN, FIRST_VAR = "encoder.encoder.conv1.bn.running_mean", "encoder.encoder.conv1.bn.running_var"
MIXED = {"conv1": "episodic", "conv2": "global", "conv3": "batch", "conv4": "global"}


def problem(encoder="convnet4", *, norm="batch", episodes=2, way=2, shot=2, query=3, size=16, **head):
    """A small float64 model, its parameters and statistics, and random episodes."""
    spec = ModelSpec(encoder, way, size, norm, **head)
    generator = torch.Generator().manual_seed(0)
    params = init_params(spec, generator, torch.float64)
    for name, value in params.items():
        if value.ndim == 1:  # leave the special point of unit scales and zero shifts
            params[name] = value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)

    def images(count):
        return torch.rand(episodes, way * count, 3, size, size, generator=generator, dtype=torch.float64)

    def labels(count):
        return torch.arange(way).repeat_interleave(count).expand(episodes, -1)

    batch = Episodes(images(shot), labels(shot), images(query), labels(query))
    return spec, params, init_stats(spec, params), batch


def episode(batch, index):
    return Episodes(*(array[index : index + 1] for array in batch))


def close(actual, expected, tolerance=1e-10):
    assert actual.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    assert max((actual[name] - expected[name]).abs().max() for name in expected) <= tolerance * scale


def slope(function, params, direction, step=1e-6):
    """Central difference of `function` along `direction`."""
    ahead = function({name: value + step * direction[name] for name, value in params.items()})
    behind = function({name: value - step * direction[name] for name, value in params.items()})
    return (ahead - behind).item() / (2 * step)


def random_direction(params):
    generator = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.std(correction=0) for n, p in params.items()
    }
