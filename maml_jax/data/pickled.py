"""Pickles of a split's images, in the forms in which data sets are handed around."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.data import safe_pickle
from maml_jax.data.arrays import Labelled, as_array, check_images, check_labels, require
from maml_jax.errors import DataError

_FIRST = 16  # keys that a message names


def read(file: Path, native: int = 0) -> Labelled:
    """Reads a pickle of a split's images, in one of three forms.

    - A dict of `data`, uint8 `[images, height, width, 3]`, and `labels`, one integer per image, as of MetaOptNet.
    - A dict of `image_data`, the same, and `class_dict`, the places of each class's images, as mini-imagenet-cache has.
    - A dict of the images of each class, a list or an array, as of few-shot-gnn and EGNN. Floating-point images are
      scaled from [0, 1], or kept where they reach beyond 1; channels may come first.

    Args:
      file: the pickle.
      native: if not 0, the height and width that the images must have.

    Raises:
      DataError: if it holds anything else, which is not executed.
    """
    content = safe_pickle.load(file)
    keys = set(map(_text, content)) if isinstance(content, dict) else set()
    if {"image_data", "class_dict"} <= keys:
        return _by_places(content, file, native)
    if content and isinstance(content, dict) and not keys & {"data", "labels"} and _are_images(content.values()):
        return _by_class(content, file, native)
    content = require(content, ["data", "labels"], file)
    data = as_array(content["data"], file, "data")
    check_images(data.dtype, data.shape, f"{file}: 'data'", native)
    labels = check_labels(content["labels"], len(data), file, "labels")
    named = content.get("catname2label")
    pairs = named.items() if isinstance(named, dict) else ()
    names = {label: name for name, label in pairs if isinstance(name, str) and isinstance(label, int | np.integer)}
    return Labelled(data.__getitem__, labels, names)


def _by_places(content: dict[Any, Any], file: Path, native: int) -> Labelled:
    content = require(content, ["image_data", "class_dict"], file)
    data, places_of = as_array(content["image_data"], file, "image_data"), content["class_dict"]
    check_images(data.dtype, data.shape, f"{file}: 'image_data'", native)
    if not isinstance(places_of, dict):
        raise DataError(f"{file}: 'class_dict' is a {type(places_of).__name__}, expected the places of each class")
    names, parts = {}, []
    for label, (name, value) in enumerate(sorted((_text(key), value) for key, value in places_of.items())):
        places = as_array(value, file, f"class_dict of {name}")
        if places.ndim != 1 or places.dtype.kind not in "iu" or not np.all((places >= 0) & (places < len(data))):
            raise DataError(f"{file}: 'class_dict' of class '{name}' has no places in {len(data)} images")
        names[label] = name
        parts.append(places.astype(np.int64))
    order = np.concatenate([*parts, np.zeros(0, np.int64)])
    if len(np.unique(order)) < len(order):
        raise DataError(f"{file}: 'class_dict' has images that are in more than one class, or twice in one")
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    unused = np.setdiff1d(np.arange(len(data)), order)
    left_out = {"images of no class": [f"{place} of {file.name}" for place in unused.tolist()]}
    return Labelled(lambda rows: data[order[rows]], labels, names, left_out)


def _by_class(content: Mapping[Any, Any], file: Path, native: int) -> Labelled:
    keys = {_text(key): key for key in content}
    numbered = all(re.fullmatch(r"\d+", text) for text in keys)
    texts = sorted(keys, key=int) if numbered else sorted(keys)
    counts, notes = [], {}
    for text in texts:
        found, note = _eight_bits(content[keys[text]], file, text)
        check_images(found.dtype, found.shape, f"{file}: class '{text}'", native)
        counts.append(len(found))
        if note:
            notes.setdefault(note, []).append(f"class {text} of {file.name}")
    ends = np.cumsum(counts)

    def take(rows: np.ndarray) -> np.ndarray:
        of = np.searchsorted(ends, rows, side="right")
        classes = {c: _eight_bits(content[keys[texts[c]]], file, texts[c])[0] for c in np.unique(of).tolist()}
        return np.stack([classes[c][row - ends[c] + counts[c]] for c, row in zip(of.tolist(), rows, strict=True)])

    numbers = np.array(list(map(int, texts)) if numbered else range(len(texts)), np.int64)
    names = {} if numbered else dict(enumerate(texts))
    return Labelled(take, np.repeat(numbers, counts), names, {}, notes)


def _eight_bits(value: Any, file: Path, name: str) -> tuple[np.ndarray, str]:
    """The images of a class as uint8 `[images, height, width, 3]`, and what is to be said of it."""
    images, note = as_array(value, file, name), ""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = np.repeat(images, 3, -1)
    if images.dtype == np.uint8 or images.dtype.kind not in "iuf" or not images.size:
        return images, note
    low, high = images.min(), images.max()
    if not (np.isfinite(images).all() and low >= 0 and high <= 255):
        raise DataError(f"{file}: class '{name}' has values from {low} to {high}, expected [0, 1] or [0, 255]")
    if images.dtype.kind == "f" and high <= 1:
        images, note = images * 255.0, "classes of floating-point images, scaled from [0, 1]"
    return np.round(images).astype(np.uint8), note


def _are_images(values: Sequence[Any]) -> bool:
    """Says whether all are lists or arrays of images, by the first of each."""
    return all(
        isinstance(value, np.ndarray | list | tuple) and len(value) and np.ndim(value[0]) in (2, 3)
        if not isinstance(value, np.ndarray) or value.ndim
        else False
        for value in values
    )


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
