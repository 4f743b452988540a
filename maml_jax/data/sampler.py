"""Few-shot tasks drawn from a class store, inside the compiled program.

A task is a function of (seed, split, index) and of nothing else: not of the device, nor of how many tasks are drawn at
once, nor of what was drawn before.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maml_jax.data.augment import prepare
from maml_jax.data.source import SPLITS
from maml_jax.data.store import ClassStore
from maml_jax.episode import Episode
from maml_jax.errors import ConfigError


class DeviceImages(NamedTuple):
    """A class store on the device.

    Attributes:
      pixels: uint8 `[images, height, width, channels]`, sorted by class.
      offsets: int32 `[classes + 1]`; class c's images are `pixels[offsets[c]:offsets[c + 1]]`.
    """

    pixels: jax.Array
    offsets: jax.Array


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
      normalize: a key of `augment.NORMALIZATIONS`.
    """

    seed: int
    split: str
    way: int
    shot: int
    query: int
    rotations: bool = False
    support_augment: str = "none"
    query_augment: str = "none"
    normalize: str = "none"


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
            f"{section}.way={spec.way}, but the {spec.split} split has only {classes} classes; "
            f"lower it with --config.{section}.way={classes}"
        )
    smallest = int(store.counts.argmin())
    if spec.shot + spec.query > store.counts[smallest]:
        raise ConfigError(
            f"{section}.shot={spec.shot} and {section}.query={spec.query} take {spec.shot + spec.query} images per "
            f"class, but class '{store.class_names[smallest]}' of the {spec.split} split has only "
            f"{store.counts[smallest]}; lower --config.{section}.shot or --config.{section}.query"
        )


def to_device(store: ClassStore) -> DeviceImages:
    """Copies a class store to the default device."""
    return DeviceImages(jnp.asarray(store.images), jnp.asarray(store.offsets, jnp.int32))


def sample_task(spec: TaskSpec, images: DeviceImages, index: jax.Array) -> Episode:
    """Draws task `index` of a split.

    Classes are drawn without replacement, and within a class so are its support and query images, so these never share
    an image.

    Args:
      spec: how.
      images: the split's images.
      index: which task, int32 scalar.

    Returns:
      The episode, float32 images, labels in class order.
    """
    key = jax.random.fold_in(jax.random.key(spec.seed), SPLITS.index(spec.split))
    choice_key, image_key, support_key, query_key = jax.random.split(jax.random.fold_in(key, index), 4)
    classes, turns = _draw_classes(choice_key, spec, images.offsets.shape[0] - 1)
    rows = _draw_images(image_key, classes, images.offsets, spec.shot + spec.query)
    pixels = images.pixels[rows]  # [way, shot + query, height, width, channels]
    if spec.rotations:
        pixels = jax.vmap(_rotate)(pixels, turns)

    def part(key, pixels, augmentation):
        flat = pixels.reshape(-1, *pixels.shape[2:])
        labels = jnp.repeat(jnp.arange(spec.way, dtype=jnp.int32), pixels.shape[1])
        return prepare(key, flat, augmentation, spec.normalize), labels

    support = part(support_key, pixels[:, : spec.shot], spec.support_augment)
    query = part(query_key, pixels[:, spec.shot :], spec.query_augment)
    return Episode(*support, *query)


def sample_tasks(spec: TaskSpec, images: DeviceImages, indices: jax.Array) -> Episode:
    """Draws the tasks `indices`, int32 `[tasks]`: an episode batch."""
    return jax.vmap(lambda index: sample_task(spec, images, index))(indices)


def _draw_classes(key, spec, classes):
    """Distinct classes `[way]` and how many quarter turns each is seen under."""
    if not spec.rotations:
        return jax.random.choice(key, classes, (spec.way,), replace=False), None
    drawn = jax.random.choice(key, 4 * classes, (spec.way,), replace=False)
    return drawn // 4, drawn % 4


def _draw_images(key, classes, offsets, count):
    """Rows of distinct images for each class, `[way, count]`: the first `count` places of a random permutation.

    Drawn by Floyd's algorithm, whose work depends on `count` and not on the size of the class, which may differ from
    class to
    class: the k-th of `count` draws is uniform in 0 .. n - count + k, and taken as the upper end if already drawn.
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
