"""Few-shot tasks drawn from a class store, inside the compiled program.

A task is a function of (seed, split, index) and of nothing else: not of the device, nor of how many tasks are drawn at
once, nor of what was drawn before. It is made in two steps, so that `stream` can do the first on the host: `draw_task`
says which images make it up, `finish_task` augments and labels them.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.data.augment import Statistics, prepare
from maml_jax.data.source import SPLITS
from maml_jax.data.store import ClassStore
from maml_jax.episode import Episode
from maml_jax.errors import ConfigError


class TaskDraw(NamedTuple):
    """Which images make up a task.

    Attributes:
      rows: int32 `[way, shot + query]`, places in the class store, support first.
      turns: int32 `[way]`: quarter turns that each class is seen under.
      labels: int32 `[way]`, of the classes.
    """

    rows: jax.Array
    turns: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """How the tasks of one split are drawn. Hashable: a static argument.

    Attributes:
      seed: of the run.
      split: 'train', 'val' or 'test'.
      way: classes per task.
      shot: support images per class.
      query: query images per class.
      rotations: each class counts as four, turned by 0, 90, 180 and 270 degrees (Santoro et al. 2016).
      support_augment: augmentation of the support images, a key of `augment.AUGMENTATIONS`.
      query_augment: augmentation of the query images.
      normalization: mean and standard deviation per channel that images are normalised by; None: not.
      size: side of the images that the model sees, in pixels; 0: as stored.
      split_labels: a class is labelled by its place among all of the split, turned ones counted, and not by its place
        in the task: for plain supervised training.
    """

    seed: int
    split: str
    way: int
    shot: int
    query: int
    rotations: bool = False
    support_augment: str = "none"
    query_augment: str = "none"
    normalization: Statistics | None = None
    size: int = 0
    split_labels: bool = False


def check_fit(spec: TaskSpec, store: ClassStore, section: str) -> None:
    """Refuses tasks that a store is too small for.

    Args:
      spec: the tasks.
      store: the images of the split.
      section: the configuration's section that way, shot and query stand in, for the message.

    Raises:
      ConfigError: more ways than classes, or more images per class than a class has.
    """
    classes = store.num_classes * (4 if spec.rotations else 1)
    if spec.way > classes:
        raise ConfigError(
            f"{section}.way={spec.way}, but the {spec.split} split has only {classes} classes",
            {f"{section}.way": classes},
        )
    smallest = int(store.counts.argmin())
    if spec.shot + spec.query > store.counts[smallest]:
        left = int(store.counts[smallest]) - spec.shot
        raise ConfigError(
            f"{section}.shot={spec.shot} and {section}.query={spec.query} take {spec.shot + spec.query} images per "
            f"class, but class '{store.class_names[smallest]}' of the {spec.split} split has only "
            f"{store.counts[smallest]}{'' if left > 0 else ', which leaves none to ask about'}",
            {f"{section}.query": left} if left > 0 else {},
        )


def draw_task(spec: TaskSpec, offsets: jax.Array, index: jax.Array) -> TaskDraw:
    """Draws which images make up task `index` of a split.

    Classes are drawn without replacement, and within a class so are its support and query images, so these never share
    an image.

    Args:
      spec: how.
      offsets: of the split's classes, int32 `[classes + 1]`.
      index: which task, int32 scalar.
    """
    class_key, image_key, _, _ = _keys(spec, index)
    classes, turns = _draw_classes(class_key, spec, offsets.shape[0] - 1)
    labels = jnp.arange(spec.way, dtype=jnp.int32)
    if spec.split_labels:
        labels = (4 * classes + turns if spec.rotations else classes).astype(jnp.int32)
    return TaskDraw(_draw_images(image_key, classes, offsets, spec.shot + spec.query), turns, labels)


def finish_task(
    spec: TaskSpec, pixels: jax.Array, turns: jax.Array, class_labels: jax.Array, index: jax.Array
) -> Episode:
    """Turns, augments, normalises and labels the images of task `index`.

    Args:
      spec: how.
      pixels: uint8 `[way, shot + query, height, width, channels]`, the rows that `draw_task` names.
      turns: int32 `[way]`, from `draw_task`.
      class_labels: int32 `[way]`, likewise.
      index: which task, int32 scalar.

    Returns:
      The episode, float32 images, labels in class order.
    """
    _, _, support_key, query_key = _keys(spec, index)
    if spec.rotations:
        pixels = jax.vmap(_rotate)(pixels, turns)

    def part(key, pixels, augmentation):
        flat = pixels.reshape(-1, *pixels.shape[2:])
        labels = jnp.repeat(class_labels, pixels.shape[1])
        return prepare(key, flat, augmentation, spec.size or flat.shape[1], spec.normalization), labels

    support = part(support_key, pixels[:, : spec.shot], spec.support_augment)
    query = part(query_key, pixels[:, spec.shot :], spec.query_augment)
    return Episode(*support, *query, key=jax.random.fold_in(_task_key(spec, index), 4))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pixels", "offsets"], meta_fields=["spec"])
@dataclasses.dataclass(frozen=True)
class ImageTasks:
    """The tasks of a split whose images are in the device's memory: `Tasks`.

    Attributes:
      spec: how they are drawn.
      pixels: uint8 `[images, height, width, channels]`, sorted by class.
      offsets: int32 `[classes + 1]`; class c's images are `pixels[offsets[c]:offsets[c + 1]]`.
    """

    spec: TaskSpec
    pixels: jax.Array
    offsets: jax.Array

    def sample(self, index: jax.Array) -> Episode:
        """Draws task `index`."""
        drawn = draw_task(self.spec, jnp.asarray(self.offsets), index)
        return finish_task(self.spec, jnp.asarray(self.pixels)[drawn.rows], drawn.turns, drawn.labels, index)


def _keys(spec, index):
    """The keys of task `index`: of its classes, its images, and the augmentation of its support and of its query."""
    return jax.random.split(_task_key(spec, index), 4)


def _task_key(spec, index):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(spec.seed), SPLITS.index(spec.split)), index)


def _draw_classes(key, spec, classes):
    """Distinct classes `[way]` and how many quarter turns each is seen under."""
    if not spec.rotations:
        return jax.random.choice(key, classes, (spec.way,), replace=False), jnp.zeros(spec.way, jnp.int32)
    drawn = jax.random.choice(key, 4 * classes, (spec.way,), replace=False)
    return drawn // 4, drawn % 4


def _draw_images(key, classes, offsets, count):
    """Rows of distinct images for each class, `[way, count]`: the first `count` places of a random permutation.

    Drawn by Floyd's algorithm, whose work depends on `count` and not on the size of the class, which may differ from
    class to class: the k-th of `count` draws is uniform in 0 .. n - count + k, and taken as the upper end if already
    drawn.
    """
    sizes = offsets[classes + 1] - offsets[classes]

    def draw(key, size):
        floor_key, order_key = jax.random.split(key)
        tops = size - count + jnp.arange(count)
        candidates = jax.random.randint(floor_key, (count,), 0, tops + 1)

        def place(k, chosen):
            taken = jnp.any(chosen == candidates[k])
            return chosen.at[k].set(jnp.where(taken, tops[k], candidates[k]))

        chosen = jax.lax.fori_loop(0, count, place, jnp.full(count, -1, jnp.int32))
        return jax.random.permutation(order_key, chosen)  # Floyd's draws are a uniform set, not a uniform order

    keys = jax.random.split(key, classes.shape[0])
    return offsets[classes][:, None] + jax.vmap(draw)(keys, sizes)


def _rotate(images, turns):
    """Turns `[batch, side, side, channels]` by `turns` quarter turns."""
    return jnp.stack([jnp.rot90(images, k, (1, 2)) for k in range(4)])[turns]
