"""A task as the model saw it: its support and query images, what it said of each, and how sure it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from maml_jax import drawing
from maml_jax.data.stream import HostTasks, as_pytree
from maml_jax.episode import Tasks

_CLASSES, _SHOTS, _QUERIES = 10, 5, 15  # shown at most
_SIDE = 0.78  # of an image, in inches
_NAME = 26  # letters of a class's name


class Judged(NamedTuple):
    """A task of an evaluation.

    Attributes:
      support: images in [0, 1], `[way, shot, height, width, channels]`.
      query: likewise, `[way, query, height, width, channels]`.
      predictions: labels, int `[way, query]`.
      confidences: probabilities of these, `[way, query]`; None if they were not kept.
      names: of the classes, by label.
    """

    support: np.ndarray
    query: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray | None
    names: list[str]

    @property
    def accuracy(self) -> float:
        """Share of queries that were told right."""
        return float((self.predictions == np.arange(len(self.names))[:, None]).mean())


def judged(tasks: Tasks, normalization: tuple | None, arrays: Mapping[str, np.ndarray], index: int) -> Judged:
    """Task `index` of an evaluation, drawn again.

    Args:
      tasks: that were evaluated.
      normalization: mean and deviation per channel that images were normalised by; None if they were not.
      arrays: what the evaluation kept of each task, as of `results.task_arrays`.
      index: which task.
    """
    if isinstance(tasks, HostTasks):
        drawn = tasks.sample(np.int32(index))
    else:
        drawn = jax.jit(lambda tasks: tasks.sample(np.int32(index)))(as_pytree(tasks))
    episode = jax.device_get(drawn._replace(key=None))
    classes = arrays["classes"][index]

    def by_class(rows):
        return np.asarray(rows).reshape(len(classes), -1, *np.shape(rows)[1:])  # tasks are in the order of labels

    mean, deviation = normalization or (0.0, 1.0)
    pixels = lambda x: by_class(np.clip(x * np.float32(deviation) + np.float32(mean), 0, 1))  # noqa: E731
    confidences = by_class(arrays["confidences"][index]) if "confidences" in arrays else None
    names = [str(arrays["class_names"][c]) for c in classes]
    return Judged(
        pixels(episode.support_x), pixels(episode.query_x), by_class(arrays["predictions"][index]), confidences, names
    )


def draw_episode(task: Judged, title: str, path: Path) -> None:
    """Draws a task: a row for each class, its support images on the left, its queries on the right.

    A query that was told right has a thin frame and the probability of its class; a wrong one a thick frame, and the
    letter of the class that it was taken for.

    Args:
      task: what to draw.
      title: of the picture.
      path: of the PNG file.
    """
    rows = min(len(task.names), _CLASSES)
    shots, queries = min(task.support.shape[1], _SHOTS), min(task.query.shape[1], _QUERIES)
    widths = [1] * shots + [0.35] + [1] * queries
    with drawing.figure(path, 1.5 + _SIDE * sum(widths), 0.9 + (_SIDE + 0.16) * rows, dpi=110) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        figure.get_layout_engine().set(wspace=0.0, hspace=0.0, w_pad=0.035, h_pad=0.03)
        grid = figure.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
        grid[0, 0].set_title("support", fontsize=10)
        for c, places in enumerate(grid):
            for axes in places:
                axes.set_axis_off()
            places[0].text(-0.15, 0.5, _label(task, c), transform=places[0].transAxes, ha="right", va="center")
            for axes, image in zip(places[:shots], task.support[c], strict=False):
                _show(axes, image, drawing.GREY, 0.8)
            for q, axes in enumerate(places[shots + 1 :]):
                _query(axes, task, c, q)


def letter(label: int) -> str:
    """The letter that stands for a class: A, ..., Z, AA, ...."""
    return (letter(label // 26 - 1) if label >= 26 else "") + chr(ord("A") + label % 26)


def _label(task, c):
    name = task.names[c]
    return f"{letter(c)}\n{name if len(name) <= _NAME else '…' + name[-_NAME + 1 :]}"


def _query(axes, task, c, q):
    said = int(task.predictions[c, q])
    sure = "" if task.confidences is None else f"{100 * task.confidences[c, q]:.0f} %"
    if said == c:
        _show(axes, task.query[c, q], drawing.OWN, 1.0)
        axes.set_title(sure, fontsize=8, color=drawing.OWN, pad=2)
    else:
        _show(axes, task.query[c, q], drawing.OTHER, 3.5)
        text = f"✗ {letter(said)} {sure}".strip()
        axes.set_title(text, fontsize=8, color=drawing.OTHER, pad=2, fontweight="bold")


def _show(axes, image, colour, width):
    axes.set_axis_on()
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)
