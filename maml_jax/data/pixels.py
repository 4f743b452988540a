"""Image files as a viewer shows them: upright, laid on a ground where they are transparent, 8 bits per channel."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageColor, ImageOps

from maml_jax.errors import ConfigError, DataError

VERSION = 2
"""Raise it with any change to the pixels, so that stores of image files are built anew."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""
WHITE = (255, 255, 255)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""Those of `archive.IMAGE_SUFFIXES`. Pillow goes by the content, and runs programs for some formats, such as EPS."""
_ORIENTATION = 0x0112
_GREY_MODES = ("1", "L", "I", "F")
"""How the modes of grey images begin."""
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,  # for one, of a broken chunk of a PNG file
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def color(name: str) -> tuple[int, int, int]:
    """The red, green and blue of a colour's name, such as 'white', or of '#rrggbb'.

    Raises:
      ConfigError: if there is no such colour, or it is transparent.
    """
    for spelled in (name, f"#{name}"):
        try:
            found = ImageColor.getrgb(spelled)
        except (ValueError, AttributeError):
            continue
        if len(found) == 3:
            return found
    raise ConfigError(f"data.background is '{name}'; choose a colour such as white, black or #80ff00")


def decode(
    content: bytes,
    mode: str,
    origin: str,
    background: tuple[int, int, int] = WHITE,
    remark: Callable[[str], None] = lambda reason: None,
) -> Image.Image:
    """Decodes an image file as a viewer shows it.

    It is turned as its EXIF data say; transparent pixels are laid on the background; colours that are not red, green
    and blue are converted as Pillow does. Grey of 16 bits is scaled by 255 / 65535, floating point from [0, 1] to
    [0, 255], and kept where it reaches beyond 1. Of several frames, the first is taken.

    Args:
      content: the file's bytes, in one of `_FORMATS`.
      mode: Pillow's mode to convert to: 'L' for grey, 'RGB' for colour.
      origin: name of the file, for messages.
      background: red, green and blue that transparent pixels are laid on.
      remark: told what was done to it, if anything was.

    Raises:
      DataError: if the file is damaged, no image, or its numbers have no known meaning.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.format != "MPO" and getattr(image, "is_animated", False):
                remark("images of several frames, of which the first is taken")
            return _flat(_eight_bits(_upright(image, remark), origin, remark), background, remark).convert(mode)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(f"cannot read the image {origin}: it is none of {', '.join(_FORMATS)}") from error
    except _DAMAGE as error:
        raise DataError(f"cannot read the image {origin}: {error}") from error


def is_grey(content: bytes) -> bool:
    """Says whether an image file is one of grey alone, by its header and palette. What is no image is not."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.mode in ("P", "PA"):
                palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
                return bool((palette == palette[:, :1]).all())
            return image.mode.startswith(_GREY_MODES) and image.mode != "LAB"
    except _DAMAGE:
        return False


def _upright(image: Image.Image, remark: Callable[[str], None]) -> Image.Image:
    image.load()
    try:
        turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # unreadable EXIF data may raise anything, and a viewer takes no notice
        turned = False
    if not turned:
        return image
    remark("images turned as their EXIF data say")
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image, origin: str, remark: Callable[[str], None]) -> Image.Image:
    """The image with 8 bits per channel."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (np.isfinite(values).all() and low >= 0 and high <= (255 if image.mode == "F" else 65535)):
        meant = "[0, 1] or [0, 255]" if image.mode == "F" else "0 to 65535"
        raise DataError(f"cannot read the image {origin}: its values are {low} to {high}, expected {meant}")
    if image.mode != "F":
        remark("images of 16 bits, scaled by 255 / 65535")
        values = values / 257
    elif high <= 1:
        remark("floating-point images, scaled from [0, 1]")
        values = values * 255.0
    else:
        remark("floating-point images, taken to be in [0, 255]")
    return Image.fromarray(np.round(values).astype(np.uint8))


def _flat(image: Image.Image, background: tuple[int, int, int], remark: Callable[[str], None]) -> Image.Image:
    """The image laid on the background, if it has transparent pixels."""
    if not image.has_transparency_data:
        return image
    if image.mode == "La":  # grey that is multiplied by its alpha, as TIFF may have it
        image = image.convert("LA")
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema()[0] == 255:
        return layer.convert("RGB")
    remark("transparent images, laid on the background")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")
