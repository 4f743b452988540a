"""Photographs of characters on paper, as a phone takes them: uneven light, a shadow, turned, blurred, noisy, JPEG.

`python -m tests.photographs DIR --data glyphs --classes 5` writes DIR/support and DIR/query, with a folder for each
class in both. The characters are of the data set's test classes, which no training has seen. Then

  maml-jax predict --weights glyphs_5w1s --support DIR/support --query DIR/query --paper
"""

import argparse
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from maml_jax.data import glyphs, omniglot
from maml_jax.data.source import ClassImages

_DRAWN = 128  # pixels of a glyph's side, before it is enlarged
_ORIENTATION = 0x0112
_TURNS = {  # by EXIF: what undoes the turn that a viewer makes
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_ASPECTS = ((4, 3), (3, 4), (1, 1))


class Scene(NamedTuple):
    """How photographs are taken; each takes its own from these ranges.

    Attributes:
      longer: pixels of the longer side.
      share: of the shorter side that the square takes which the character is drawn in.
      turn: degrees, the standard deviation.
      tilt: how far corners of that square are off, as a share of its side: perspective.
      paper: brightness of the paper in full light, 0 to 1.
      ink: brightness of the ink there.
      fall: of the light from one side to the other, as a share.
      shadow: how much light a shadow takes, over a part of the picture; half of the pictures have one.
      blur: pixels, standard deviation, of a picture of 1000 pixels.
      noise: standard deviation of a pixel, of 255.
      quality: of the JPEG.
    """

    longer: tuple[int, int] = (640, 1600)
    share: tuple[float, float] = (0.45, 0.9)
    turn: float = 4.0
    tilt: float = 0.04
    paper: tuple[float, float] = (0.75, 0.95)
    ink: tuple[float, float] = (0.08, 0.35)
    fall: tuple[float, float] = (0.1, 0.45)
    shadow: tuple[float, float] = (0.15, 0.4)
    blur: tuple[float, float] = (0.5, 3.0)
    noise: tuple[float, float] = (1.0, 7.0)
    quality: tuple[int, int] = (55, 92)


PHONE = Scene()


def held_out(name: str, root: Path | None = None) -> list[ClassImages]:
    """The test classes of 'glyphs' or of 'omniglot', whose archives lie in `root`: bright ink on black."""
    source = glyphs.source(_DRAWN) if name == "glyphs" else omniglot.source(root, image_size=105)
    return list(source.splits["test"])


def take(
    folder: Path,
    classes: list[ClassImages],
    ways: int,
    seed: int,
    shots: tuple[int, int] = (1, 5),
    queries: int = 5,
    scene: Scene | None = PHONE,
) -> int:
    """Draws classes and writes photographs of them, other ones for support and query.

    Args:
      folder: where `support/` and `query/` go.
      classes: to draw from.
      ways: how many.
      seed: what is drawn, and every photograph, follow from it.
      shots: the fewest and the most photographs of a class in the support set, both included.
      queries: photographs of each class to ask about.
      scene: how they are taken; None for the drawings themselves, bright ink on black.

    Returns:
      the number of photographs in the support set.
    """
    rng, todo = np.random.default_rng(seed), []
    for c in rng.choice(len(classes), ways, replace=False):
        images, shot = classes[c].load(), int(rng.integers(shots[0], shots[1] + 1))
        for i, which in enumerate(rng.permutation(len(images))[: shot + queries]):
            name = Path("support" if i < shot else "query", classes[c].name.replace("/", "_"), str(i))
            todo.append((name, images[which, ..., 0], np.random.default_rng([seed, len(todo)])))

    def write(one):
        name, image, chance = one
        path = (folder / name).with_suffix(".jpg" if scene else ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if scene:
            path.write_bytes(photograph(image, chance, scene))
        else:
            Image.fromarray(image).save(path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, todo))
    return sum(name.parts[0] == "support" for name, *_ in todo)


def photograph(image: np.ndarray, rng: np.random.Generator, scene: Scene = PHONE) -> bytes:
    """A JPEG of a character in dark ink on paper.

    Args:
      image: uint8 `[size, size]`, bright ink on black.
      rng: what is left to chance.
      scene: its ranges.
    """
    longer, (across, down) = rng.integers(scene.longer[0], scene.longer[1] + 1), _ASPECTS[rng.integers(3)]
    width, height = (int(longer * side / max(across, down)) for side in (across, down))
    ink = _laid(image, width, height, rng, scene)[..., None]
    paper = rng.uniform(*scene.paper) * np.array([1, rng.uniform(0.95, 1), rng.uniform(0.85, 1)], np.float32)
    pen = rng.uniform(*scene.ink) * np.array([1, 1, rng.uniform(1, 1.6)], np.float32)  # black to blue
    light = _light(width, height, rng, scene)[..., None]
    seen = 255 * light * (paper + ink * (np.minimum(pen, paper) - paper))
    blurred = Image.fromarray(seen.astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(*scene.blur) * longer / 1000))
    )
    grain = rng.normal(0, rng.uniform(*scene.noise), (height, width, 1)).astype(np.float32)
    final = Image.fromarray(np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8))
    held, exif, content = rng.choice(list(_TURNS)), Image.Exif(), io.BytesIO()
    exif[_ORIENTATION] = int(held)
    final = final if _TURNS[held] is None else final.transpose(_TURNS[held])
    final.save(content, "JPEG", quality=int(rng.integers(scene.quality[0], scene.quality[1] + 1)), exif=exif)
    return content.getvalue()


def _laid(image, width, height, rng, scene):
    """Where ink covers the paper, 0 to 1: float32 `[height, width]`."""
    side = rng.uniform(*scene.share) * min(width, height)
    angle = np.deg2rad(rng.normal(0, scene.turn))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2
    corners = corners @ turned.T + rng.uniform(-scene.tilt, scene.tilt, (4, 2)) * side
    room = np.maximum(np.array([width, height]) / 2 - np.abs(corners).max(0), 0)
    corners += np.array([width, height]) / 2 + rng.uniform(-room, room)
    size = image.shape[0] * 4
    large = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)  # of soft edges, like wet ink
    square = np.array([[0, 0], [size, 0], [size, size], [0, size]])
    drawn = large.transform(
        (width, height), Image.Transform.PERSPECTIVE, _projection(corners, square), Image.Resampling.BILINEAR
    )
    return np.clip((np.asarray(drawn, np.float32) / 255 - 0.25) / 0.5, 0, 1)


def _projection(from_points, to_points):
    """The eight numbers of the projection that takes four points to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(from_points, to_points, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(rows, float), np.array(values, float)))


def _light(width, height, rng, scene):
    """How much light falls where, 0 to 1: float32 `[height, width]`."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    towards = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(*scene.fall) * (0.5 + (x * np.cos(towards) + y * np.sin(towards)) / np.sqrt(2))
    if rng.random() < 0.5:
        towards, edge, soft = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3), rng.uniform(0.02, 0.15)
        across = (x * np.cos(towards) + y * np.sin(towards) - edge) / soft
        light *= 1 - rng.uniform(*scene.shadow) / (1 + np.exp(-np.clip(across, -30, 30)))
    return light.astype(np.float32)


def main() -> None:
    """Writes a folder of photographs."""
    parser = argparse.ArgumentParser("python -m tests.photographs", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", choices=("glyphs", "omniglot"), default="glyphs")
    parser.add_argument("--root", type=Path, help="folder of Omniglot's archives")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs=2, default=(1, 5), help="the fewest and the most of a class")
    parser.add_argument("--queries", type=int, default=5, help="photographs of each class")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.data == "omniglot" and not given.root:
        parser.error("--data omniglot needs --root")
    classes = held_out(given.data, given.root)
    count = take(given.folder, classes, given.classes, given.seed, given.shots, given.queries)
    print(
        f"{given.folder}: {count} photographs of {given.classes} classes, {given.classes * given.queries} to ask about"
    )


if __name__ == "__main__":
    main()
