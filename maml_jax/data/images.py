"""Decoding of image files."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from maml_jax.errors import DataError


def decode(content: bytes, mode: str, origin: str) -> Image.Image:
    """Decodes an image file.

    Args:
      content: The file's bytes: PNG, JPEG or another format that Pillow knows.
      mode: Pillow's mode to convert to: 'L' for grey, 'RGB' for colour.
      origin: Name of the file, for messages.

    Raises:
      DataError: If the file is damaged or no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert(mode)
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


def to_square(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """Resizes to `size` pixels each way, antialiased; the aspect ratio is not kept. An image of that size stays as is.

    Returns:
      uint8 `[size, size, channels]`.
    """
    if image.size != (size, size):
        image = image.resize((size, size), resample)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, len(image.getbands()))
