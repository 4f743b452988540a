"""Decoding of image files."""

import functools
import io
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from maml_jax.data.archive import Tree
from maml_jax.data.source import ClassImages
from maml_jax.errors import DataError

_MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Those of `archive.IMAGE_SUFFIXES`. Pillow goes by the content, and runs programs for some formats, such as EPS."""
_DEEP_MODES = ("I", "F")
"""How the modes begin whose pixels have more than 8 bits: converting them would cut them off at 255."""


def decode(content: bytes, mode: str, origin: str) -> Image.Image:
    """Decodes an image file.

    Args:
      content: the file's bytes, in one of `_FORMATS`.
      mode: Pillow's mode to convert to: 'L' for grey, 'RGB' for colour.
      origin: name of the file, for messages.

    Raises:
      DataError: if the file is damaged, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if not image.mode.startswith(_DEEP_MODES):
                return image.convert(mode)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"cannot read the image {origin}: it is none of {', '.join(_FORMATS)}") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        # Pillow has no one exception for damage: a broken PNG chunk, for one, is a SyntaxError.
        raise DataError(f"cannot read the image {origin}: {error}") from error
    raise DataError(f"cannot read the image {origin}: it has more than 8 bits per channel")


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
    mode = _MODES[images.shape[-1]]
    squares = (to_square(Image.fromarray(image.squeeze() if mode == "L" else image), size) for image in images)
    return np.stack(list(squares))


def class_images(
    tree: Tree, name: str, members: Sequence[str], size: int, native: int = 0, channels: int = 3
) -> ClassImages:
    """A class whose images are members of a tree.

    Args:
      tree: where they are.
      name: name of the class.
      members: their paths.
      size: side of the images in pixels, to which others are resized.
      native: if not 0, the side that every image must come with.
      channels: 3 to convert to RGB, 1 to convert to grey.
    """
    load = functools.partial(_load, tree, members, size, native, channels)
    return ClassImages(name, len(members), load, str(tree.path))


def _load(tree: Tree, members: Sequence[str], size: int, native: int, channels: int) -> np.ndarray:
    def one(member: str) -> np.ndarray:
        origin = f"{member} in {tree.path}"
        image = decode(tree.read(member), _MODES[channels], origin)
        if native and image.size != (native, native):
            width, height = image.size
            raise DataError(f"the image {origin} is {width} x {height} pixels, expected {native} x {native}")
        return to_square(image, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        return np.stack(list(pool.map(one, members)))
