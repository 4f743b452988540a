"""Classes of image files, decoded and brought to one size."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from maml_jax.data import pixels
from maml_jax.data.account import Account
from maml_jax.data.archive import Tree
from maml_jax.data.source import ClassImages
from maml_jax.errors import DataError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in pixels from its upper left corner; the last two lie outside."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What image files are made into.

    Attributes:
      size: side of the images in pixels, to which others are resized.
      channels: 3 for colour, 1 for grey; 0: grey if all images are, else colour.
      background: red, green and blue that transparent pixels are laid on.
      native: if not 0, the side that every image must come with.
      box: gives the part of an image, by its path, that is taken, as far as it lies inside, or None for
        all of it; None: all of every image.
    """

    size: int
    channels: int = 3
    background: tuple[int, int, int] = pixels.WHITE
    native: int = 0
    box: Callable[[str], Box | None] | None = None


def to_square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Resizes to `size` pixels each way, antialiased; the aspect ratio is not kept. An image of that size stays as is.

    Returns:
      uint8 `[size, size, channels]`.
    """
    if image.size != (size, size):
        image = image.resize((size, size), resample)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, len(image.getbands()))


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 `[images, height, width, channels]`, of 1 or 3 channels, as `to_square` does."""
    if images.shape[1:3] == (size, size):
        return images
    mode = pixels.MODES[images.shape[-1]]
    squares = (to_square(Image.fromarray(image.squeeze() if mode == "L" else image), size) for image in images)
    return np.stack(list(squares))


def class_images(tree: Tree, name: str, members: Sequence[str], look: Look, account: Account) -> ClassImages:
    """A class whose images are members of a tree.

    Args:
      tree: where they are.
      name: name of the class.
      members: their paths.
      look: what they are made into.
      account: told of images that are changed to be shown as a viewer shows them.
    """
    return ClassImages(name, len(members), functools.partial(_load, tree, members, look, account), str(tree.path))


def _load(tree: Tree, members: Sequence[str], look: Look, account: Account) -> np.ndarray:
    def one(member: str) -> np.ndarray:
        origin = f"{member} in {tree.path}"

        def remark(reason: str) -> None:
            account.notes.add(reason, [member])

        image = pixels.decode(tree.read(member), pixels.MODES[look.channels], origin, look.background, remark)
        if look.native and image.size != (look.native, look.native):
            width, height = image.size
            raise DataError(f"the image {origin} is {width} x {height} pixels, expected {look.native} x {look.native}")
        if look.box and (box := look.box(member)):
            image = _cut(image, box, origin)
        return to_square(image, look.size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        return np.stack(list(pool.map(one, members)))


def _cut(image: Image.Image, box: Box, origin: str) -> Image.Image:
    """The part of an image in a box.

    Raises:
      DataError: if there is none.
    """
    left, top, right, bottom = box
    inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"the box {box} holds nothing of the image {origin}, of {image.width} x {image.height} pixels")
    return image.crop(inside)
