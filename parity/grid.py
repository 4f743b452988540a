"""Cases of our own: any point of the option space at any size, and a grid of them that `check` goes through."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from parity import convert, replay
from parity.golden import GoldenCase, InnerArgs, OuterArgs, as_recorded

_SAMPLE = 10**9  # of a golden file: keep everything


def make_case(
    name: str,
    *,
    encoder: str = "convnet4",
    width: int = 4,
    norm: str | dict[str, str] = "batch",
    temp: float = 1.0,
    learn_temp: bool = False,
    way: int = 2,
    shot: int = 2,
    query: int = 2,
    episodes: int = 2,
    image_size: int = 16,
    dtype: str = "float64",
    eval_steps: int = 3,
    outer: OuterArgs | None = None,
    seed: int = 0,
    **inner: Any,
) -> GoldenCase:
    """A case on random images, which records what the PyTorch reference makes of it.

    Args:
      name: to report it by.
      encoder: one of the reference's.
      width: channels of its first block; 0 for its own.
      norm: a mode for all layers, or for each block by the reference's name of it.
      temp: factor on the logits.
      learn_temp: make it a parameter.
      way: classes per episode, with `shot` support and `query` query images each.
      shot: see `way`.
      query: see `way`.
      episodes: in the batch.
      image_size: side of the images in pixels.
      dtype: 'float64' or 'float32'.
      eval_steps: inner steps in evaluation mode.
      outer: an optimiser whose trajectory is recorded too.
      seed: of parameters and images.
      **inner: fields of `InnerArgs` other than the defaults: two steps of different rates for encoder and head.
    """
    defaults = InnerArgs(2, 0.05, 0.1, 0.0, 0.0, False, (), False)
    case = GoldenCase(
        name=name,
        encoder=encoder,
        norm=dict.fromkeys(convert.blocks_of(encoder), norm) if isinstance(norm, str) else norm,
        temp=temp,
        learn_temp=learn_temp,
        inner=dataclasses.replace(defaults, **inner),
        eval_n_step=eval_steps,
        outer=outer,
        sample=_SAMPLE,
        params={},
        recorded={},
        width=width,
        **_tasks(seed, episodes, way, shot, query, image_size, dtype),
    )
    case = dataclasses.replace(case, params=replay.init_torch(case))
    return dataclasses.replace(case, recorded=as_recorded(replay.in_torch(case), _SAMPLE))


def _tasks(seed, episodes, way, shot, query, side, dtype):
    """Random images and their labels, and what describes them, by the fields of a case."""
    rng = np.random.default_rng(seed)
    parts = {"n_episode": episodes, "n_way": way, "n_shot": shot, "n_query": query}
    parts |= {"image_size": side, "dtype": dtype, "seed": seed}
    for part, count in (("support", shot), ("query", query)):
        parts[f"{part}_x"] = rng.random((episodes, way * count, 3, side, side)).astype(dtype)
        parts[f"{part}_y"] = np.repeat(np.arange(way), count)
    return parts


def _mixed(encoder: str, *modes: str) -> dict[str, str]:
    return dict(zip(convert.blocks_of(encoder), modes, strict=True))


_ADAM, _SGD, _RMSPROP = (OuterArgs(name, 0.01, decay, 3) for name, decay in (("adam", 0), ("sgd", 0.1), ("rmsprop", 0)))
# By name: the options of `make_case`.
GRID: dict[str, dict[str, Any]] = {
    "batch": {"width": 8, "frozen": ("bn",), "outer": _ADAM, "image_size": 35},
    "episodic": {"norm": "episodic", "momentum": 0.9, "weight_decay": 0.1, "reset_classifier": True, "outer": _SGD},
    "global": {"norm": "global", "shot": 3, "outer": _RMSPROP},
    "mixed": {
        "norm": _mixed("convnet4", "episodic", "global", "batch", "episodic"),
        "temp": 3,
        "learn_temp": True,
        "way": 3,
        "momentum": 0.5,
        "frozen": ("conv2", "classifier.linear.bias"),
        "outer": _ADAM,
    },
    "first_order": {
        "norm": "episodic",
        "first_order": True,
        "momentum": 0.9,
        "weight_decay": 0.1,
        "n_step": 3,
        "temp": 0.5,
    },
    "own_width": {"encoder": "convnet4", "width": 0, "query": 1},
    "wide": {"encoder": "wide-convnet4", "width": 0, "episodes": 1, "n_step": 1},
    "resnet12_episodic": {"encoder": "resnet12", "norm": "episodic", "momentum": 0.9, "weight_decay": 0.01},
    "wide_resnet12_mixed": {
        "encoder": "wide-resnet12",
        "norm": _mixed("resnet12", "global", "episodic", "batch", "global"),
        "frozen": ("conv1",),
        "outer": _SGD,
    },
    "resnet18_batch": {"encoder": "resnet18", "outer": _RMSPROP},
    "resnet18_mixed": {
        "encoder": "wide-resnet18",
        "norm": _mixed("resnet18", "batch", "global", "episodic", "global", "episodic"),
        "reset_classifier": True,
        "image_size": 17,
    },
    "resnet18_standard_global": {"encoder": "resnet18-standard", "norm": "global", "first_order": True, "way": 3},
}


def grid() -> Iterator[GoldenCase]:
    """The cases of `GRID`, one after the other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small shapes gain nothing from more, and lose much where the processor is shared
    try:
        for seed, (name, options) in enumerate(GRID.items()):
            yield make_case(name, seed=seed, **options)
    finally:
        torch.set_num_threads(threads)
