"""The verb `predict`: class folders and pictures in, the class of each picture out."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maml_jax import data
from maml_jax.data import pictures
from maml_jax.errors import ConfigError, DataError
from maml_jax.models import weights
from maml_jax.models.arguments import Parser
from maml_jax.models.trained import Adapted, Trained
from maml_jax.progress import Meter, say

_ABOUT = """\
Adapts a trained model to pictures in class folders, and tells the classes of others.

  maml-jax predict --weights runs/glyphs_5w1s --support my_letters --query scans/ 'more/*.jpg'

where my_letters/ has a folder for each class, named after it, with one picture or more: any number of classes (a model
with a meta-learned head takes up to its own), not the same number of pictures in each. A picture counts as much as any
other, so a class with more pictures weighs more. PNG, JPEG, WebP, BMP, GIF, PPM and TIFF of any size, grey, colour,
palette, CMYK, 16 bits, transparent or turned by EXIF are read as a viewer shows them."""
_NOTES = """\
The answer goes to standard output, everything else to standard error. json is a list of
  {"file": ..., "class": ..., "probability": ..., "probabilities": {class: p, ...}}  with the likeliest class first.
Files that cannot be read are named and left out. The exit status is 0 if any file was classified, 2 if none was."""
_BATCH = 64  # files in memory at once
_SHOWN = 5  # classes of a picture in a table
_INKED = ("glyphs", "omniglot")  # bright ink on black
_BRIGHT = 96  # of 255: the median of paper, and of a page in shadow, is above it; that of bright ink on black is near 0

Row = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """The verb `predict`."""
    given = _parse(arguments)
    jax.config.update("jax_compilation_cache_dir", str(data.default_cache_dir() / "xla"))
    files = pictures.find(given.query)
    classes = _classes(given.support)
    model = weights.load(given.weights, given.own_code)
    if given.paper and model.channels != 1:
        raise ConfigError(f"--paper is for models of ink in grey images, and those of {given.weights} are in colour")
    images, labels = _support(model, classes, given)
    adapted = model.adapt(images, labels, given.transductive, given.steps)
    _tell(model, adapted, images, labels, given)
    known = {path.resolve() for paths in classes.values() for path in paths}
    if shared := [path for path in files if path.resolve() in known]:
        say(f"note: {len(shared)} of the query's files are in the support set, too, such as {shared[0]}")
    rows = list(_classified(model, adapted, files, given))
    if not rows:
        raise DataError("none of the query's files could be read")
    sys.stdout.write(_OUTPUTS[given.output](rows, adapted.classes))
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    parser = Parser("predict", _ABOUT, epilog=_NOTES)
    names = ", ".join(weights.shipped())
    parser.add_argument(
        "--weights",
        required=True,
        metavar="NAME_OR_DIR",
        help="a folder of `maml-jax export`, the work directory of a run" + (f", or one of {names}" if names else ""),
    )
    parser.add_argument("--support", required=True, type=Path, metavar="DIR", help="folder of class folders")
    parser.add_argument(
        "--query", required=True, nargs="+", metavar="PATH", help="pictures, folders of pictures, patterns"
    )
    parser.add_argument("--output", choices=sorted(_OUTPUTS), default="table", help="default: table")
    parser.add_argument("--steps", type=_count, help="inner steps; default: as many as at the model's test")
    parser.add_argument(
        "--transductive",
        action="store_true",
        help="normalise all pictures of the query together, if the model was trained so: often more accurate, but an "
        "answer then depends on the other pictures",
    )
    ink = parser.add_mutually_exclusive_group()
    ink.add_argument(
        "--paper",
        action="store_true",
        help="pictures are photographs or scans of dark ink on paper: light is evened out, the ink cut out, centred "
        "and made bright on black, as models of characters know it",
    )
    ink.add_argument("--invert", action="store_true", help="turn dark into bright, and nothing else")
    parser.add_argument("--own-code", action="store_true", help="import an encoder that is code of your own")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps")
    return int(text)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class."""
    classes = pictures.class_pictures(folder)
    if len(classes) < 2:
        (name,) = classes
        raise DataError(f"{folder} has a single class, {name!r}; to tell classes apart takes a folder for each of two")
    return classes


def _support(model: Trained, classes: dict[str, list[Path]], given: Any) -> tuple[np.ndarray, list[str]]:
    images, labels = [], []
    for name, paths in classes.items():
        found = pictures.read(paths, model.look, given.paper)
        for problem in found.problems:
            say(f"left out: {problem}")
        if not found.paths:
            raise DataError(f"none of the images of class {name!r} in {given.support} could be read")
        images.append(found.images)
        labels += [name] * len(found.images)
    images = np.concatenate(images)
    if model.config.data.name in _INKED and not given.invert and np.median(images) > _BRIGHT:
        say(
            "note: the model knows bright ink on black, and these pictures are mostly bright; try --paper if they are "
            "photographs or scans, else --invert"
        )
    return _shown(images, given), labels


def _shown(images: np.ndarray, given: Any) -> np.ndarray:
    return 255 - images if given.invert else images


def _tell(model: Trained, adapted: Adapted, images: np.ndarray, labels: list[str], given: Any) -> None:
    """Says what it adapted to, how, and what may be expected."""
    counts = {name: labels.count(name) for name in adapted.classes}
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:20])
    say(f"{len(counts)} classes: {shown}{', ...' if len(counts) > 20 else ''}")
    if adapted.transductive:
        say("warning: transductive, so an answer depends on the pictures that it is asked with; those of others differ")
    else:
        say("inductive: each picture is judged by itself, whatever else is asked")
        if given.transductive:
            say("note: the model was not trained transductively; --transductive changes nothing")
    say(f"support loss {adapted.support_loss.before:.4f} before adaptation, {adapted.support_loss.after:.4f} after it")
    if min(counts.values()) < 2:
        say("accuracy: not estimated, which takes two pictures of each class")
        return
    score = model.cross_validate(images, labels, given.transductive, given.steps)
    low, high = score.interval95
    say(
        f"accuracy: about {score.right / score.of:.0%} ({low:.0%} to {high:.0%}), for {score.right} of {score.of} "
        "pictures of the support set were told right by the others, with one less of each class"
    )


def _classified(model: Trained, adapted: Adapted, files: list[Path], given: Any) -> Iterator[Row]:
    """A row for each file that can be read."""
    step = len(files) if adapted.transductive else _BATCH
    with Meter("classifying", len(files), "pictures") as meter:
        meter.start()
        for start in range(0, len(files), step):
            found = pictures.read(files[start : start + step], model.look, given.paper)
            for problem in found.problems:
                say(f"left out: {problem}")
            if found.paths:
                said = adapted.predict(_shown(found.images, given))
                for path, row in zip(found.paths, said.probabilities.tolist(), strict=True):
                    ordered = sorted(zip(adapted.classes, row, strict=True), key=lambda pair: -pair[1])
                    yield {
                        "file": str(path),
                        "class": ordered[0][0],
                        "probability": ordered[0][1],
                        "probabilities": dict(ordered),
                    }
            meter.advance(min(start + step, len(files)))


def _as_json(rows: list[Row], classes: Sequence[str]) -> str:
    del classes
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _as_csv(rows: list[Row], classes: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "probability", *classes])
    for row in rows:
        values = [row["probabilities"][name] for name in classes]
        writer.writerow([row["file"], row["class"], *(f"{value:.6g}" for value in (row["probability"], *values))])
    return text.getvalue()


def _as_table(rows: list[Row], classes: Sequence[str]) -> str:
    del classes
    width = max(len(row["file"]) for row in rows)
    lines = []
    for row in rows:
        first = list(row["probabilities"].items())[:_SHOWN]
        lines.append(f"{row['file']:{width}}  " + "  ".join(f"{name} {value:.1%}" for name, value in first))
    return "".join("".join(c if c.isprintable() else "?" for c in line) + "\n" for line in lines)


_OUTPUTS = {"table": _as_table, "csv": _as_csv, "json": _as_json}
