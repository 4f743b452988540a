"""A user's own pictures: found, read, and brought to the form of a store's images."""

import glob
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from maml_jax.bounded import read_bytes
from maml_jax.data import paper, pixels
from maml_jax.data.archive import is_image
from maml_jax.data.images import Look, to_square
from maml_jax.errors import DataError


class Pictures(NamedTuple):
    """Pictures that were read.

    Attributes:
      images: uint8 `[pictures, size, size, channels]`.
      paths: where each came from.
      problems: a line for each file that could not be read.
    """

    images: np.ndarray
    paths: list[Path]
    problems: list[str]


def read(paths: Sequence[Path], look: Look, on_paper: bool = False) -> Pictures:
    """Reads pictures as a viewer shows them; those that cannot be read are left out, and named.

    Args:
      paths: of the files.
      look: what they are made into.
      on_paper: they are of dark ink on paper, which `paper.ink` makes bright ink on black; `look` has one channel.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        read_or_not = list(pool.map(lambda path: _read(path, look, on_paper), paths))
    images = [image for image in read_or_not if not isinstance(image, str)]
    return Pictures(
        np.stack(images) if images else np.zeros((0, look.size, look.size, look.channels), np.uint8),
        [path for path, image in zip(paths, read_or_not, strict=True) if not isinstance(image, str)],
        [image for image in read_or_not if isinstance(image, str)],
    )


def _read(path: Path, look: Look, on_paper: bool) -> np.ndarray | str:
    """A picture, or why there is none."""
    try:
        picture = pixels.decode(read_bytes(path), pixels.MODES[look.channels], str(path), look.background)
        return paper.ink(picture, look.size, str(path)) if on_paper else to_square(picture, look.size)
    except DataError as error:
        return error.facts
    except OSError as error:
        return f"cannot read the image {path}: {error.strerror or error}"


def squares(images: Iterable[Any], look: Look) -> np.ndarray:
    """Brings arrays to the form of stored images, as files of the same pixels would be.

    Args:
      images: `[n, height, width, channels]`, or n arrays `[height, width, channels]` or `[height, width]` of any sizes:
        uint8, or floating point in [0, 1], which is rounded to 8 bits. One channel is grey, three are red, green, blue.
      look: their size and channels; grey and colour are converted into each other.

    Returns:
      uint8 `[n, size, size, channels]`.

    Raises:
      DataError: an array is of another shape or type, or out of range.
    """
    made = [_square(np.asarray(image), look, f"image {i}") for i, image in enumerate(images)]
    return np.stack(made) if made else np.zeros((0, look.size, look.size, look.channels), np.uint8)


def _square(image: np.ndarray, look: Look, name: str) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in pixels.MODES or not image.size:
        raise DataError(
            f"{name} is of shape {list(image.shape)}, expected [height, width, channels] with 1 channel or 3, "
            "as every row of [n, height, width, channels]"
        )
    if np.issubdtype(image.dtype, np.floating):
        if not (image.min() >= 0 and image.max() <= 1):  # nor NaN
            raise DataError(
                f"{name} has values from {image.min()} to {image.max()}; those of float images are in [0, 1]"
            )
        image = np.round(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{name} is of type {image.dtype}, expected uint8, or floating point in [0, 1]")
    if image.shape == (look.size, look.size, look.channels):
        return image
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    return to_square(picture.convert(pixels.MODES[look.channels]), look.size)


def class_pictures(folder: Path) -> dict[str, list[Path]]:
    """The images of each class of a folder of class folders, sorted; images may lie further in, too.

    Raises:
      DataError: there is no such folder, it has no class folders, or one of them has no images.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is {'no folder' if folder.exists() else 'not there'}; give a folder of class folders"
        )
    inside = _listed(folder)
    classes = {path.name: below(path) for path in inside if path.is_dir()}
    if not classes:
        found = "has images, but no folders" if any(is_image(path.name) for path in inside) else "has no folders"
        raise DataError(f"{folder} {found}: the images of each class belong in a folder of its own, named after it")
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise DataError(f"{folder} has no images of {', '.join(empty)}; add some, or take the folder away")
    return classes


def below(folder: Path) -> list[Path]:
    """The image files of a folder and the folders in it, sorted; no hidden ones."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(path, name) for name in files if is_image(name) and not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def find(names: Sequence[str]) -> list[Path]:
    """The files that are meant: files of any name, folders with all images in them, and patterns such as '*.jpg'.

    Raises:
      DataError: something is not there, or holds no images.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = below(path)
        elif path.is_file():
            files = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            files = [f for m in matches for f in (below(m) if m.is_dir() else [m] if is_image(m.name) else [])]
            if not matches:
                raise DataError(f"{name} fits no file" if glob.has_magic(name) else f"there is no {name}")
        if not files:
            raise DataError(f"{name} has no images")
        found |= dict.fromkeys(files)
    return list(found)


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what is hidden."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from error
