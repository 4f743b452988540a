"""Where the figures come from: the data as it is, what it shares between splits, versions and the command."""

import hashlib
import itertools
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from maml_jax.data import data_set
from maml_jax.data.store import ClassStore
from maml_jax.progress import Meter

_TOLD_EVERY = 1000
_EXAMPLES = 3


def provenance(
    protocol: Mapping[str, Any], stores: Mapping[str, ClassStore], shared: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The object of this measure; `value` is how many images of the tested split occur in another one, bit for bit.

    Args:
      protocol: what the figures depend on.
      stores: the images by split.
      shared: what `duplicates` found; None if there are no images.
    """
    published = data_set(protocol["data"]["name"]).classes
    splits = {
        split: {
            "classes": store.num_classes,
            "published_classes": published.get(split),
            "images": len(store.images),
            "sha256": store.sha256,
        }
        for split, store in stores.items()
    }
    found = {"value": None, "ci95": None, "n_tasks": 0}
    if shared is not None:
        found |= {"value": shared["of_the_tested_split"], "duplicates": shared["pairs"]}
    return {**found, "splits": splits, "command": shlex.join(["maml-jax", *sys.argv[1:]]), **protocol}


def duplicates(stores: Mapping[str, ClassStore], tested: str, label: str) -> dict[str, Any]:
    """Images that are the same bit for bit in two splits.

    Args:
      stores: the images by split.
      tested: the split that is tested on.
      label: tell under this name how far it is.

    Returns:
      `pairs`: of each two splits that share any, such as 'train and test', the `images` of the second that the first
      has too, and a few `examples` of their classes; `of_the_tested_split`: how many of its images another one has.
    """
    hashes = _hashes(stores, label)
    pairs = {}
    for first, second in itertools.combinations(stores, 2):
        shared = [place for place, digest in enumerate(hashes[second]) if digest in hashes[first]]
        if shared:
            of = stores[second].offsets.searchsorted(shared, side="right") - 1
            classes = dict.fromkeys(stores[second].class_names[c] for c in of)
            pairs[f"{first} and {second}"] = {"images": len(shared), "examples": list(classes)[:_EXAMPLES]}
    elsewhere = set().union(*(hashes[split] for split in stores if split != tested))
    return {"pairs": pairs, "of_the_tested_split": sum(digest in elsewhere for digest in hashes[tested])}


def _hashes(stores, label):
    """Of each image a hash, by split; dicts, which keep the order of images as long as they differ."""
    hashes = {}
    with Meter(label, sum(len(store.images) for store in stores.values()), "images", show=bool(label)) as meter:
        meter.start()
        done = 0
        for split, store in stores.items():
            hashes[split] = _Hashes()
            for image in store.images:
                hashes[split].add(hashlib.blake2b(image.data, digest_size=16).digest())
                done += 1
                if done % _TOLD_EVERY == 0:
                    meter.advance(done)
    return hashes


class _Hashes(list):
    """Hashes in the order of images, with a quick look-up."""

    def __init__(self):
        super().__init__()
        self._known = set()

    def add(self, digest: bytes) -> None:
        """Adds that of the next image."""
        self.append(digest)
        self._known.add(digest)

    def __contains__(self, digest: object) -> bool:
        return digest in self._known
