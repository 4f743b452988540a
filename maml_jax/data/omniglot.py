"""Omniglot (Lake et al., Science 2015): 1,623 handwritten characters, 20 images of each.

Read from the official archives `images_background.zip` and `images_evaluation.zip`, or from the folders they unpack to.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maml_jax.data import images, pixels
from maml_jax.data.account import Account
from maml_jax.data.archive import Folder, Tree, Zip
from maml_jax.data.dataset import DataSet
from maml_jax.data.download import Download
from maml_jax.data.source import SPLITS, ClassImages, LazySplits, MissingFiles, Source, read_list
from maml_jax.errors import ConfigError, DataError

VERSION = 1
"""Raise it with any change to the pixels, so that stores are built anew."""
IMAGES_PER_CLASS = 20
TERMS = (
    "Omniglot, https://github.com/brendenlake/omniglot, MIT licence; cite Lake, Salakhutdinov and Tenenbaum, "
    "'Human-level concept learning through probabilistic program induction', Science 350 (2015)."
)
_URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
ARCHIVES = (
    Download(
        "images_background.zip",
        f"{_URL}images_background.zip",
        9_464_212,
        "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    ),
    Download(
        "images_evaluation.zip",
        f"{_URL}images_evaluation.zip",
        6_462_886,
        "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
    ),
)
_PARTS = ("images_background", "images_evaluation")
CLASS_SPLITS = ("vinyals", "random")
_MEMBER = re.compile(r"(?:.*/)?(?P<name>[^/]+/character\d\d)/[^/]+\.png")
"""An image's path in its part's folder or archive."""


def source(root: str | os.PathLike[str], split: str = "", image_size: int = 28, seed: int = 0) -> Source:
    """Omniglot as a data set: bright ink on black, uint8 `[20, size, size, 1]` per class.

    Rotated copies of the classes, which many papers add, are left to sampling.

    Args:
      root: folder with the two archives, or with the two folders they unpack to.
      split: 'vinyals' (or ''), the 1028 / 172 / 423 classes of Matching Networks (alphabets are kept together but for
        one), or 'random', as in MAML: 1200 random classes, of which the last 100 are for validation, and 423 for the
        test.
      image_size: side of the images in pixels; the 105 pixels of the originals are resized by an antialiasing Lanczos
        filter, as in MAML.
      seed: seed of the random split.

    Raises:
      ConfigError: if there is no such split.
      MissingFiles: if an archive and its folder are missing. That they are complete and undamaged shows as they are
        read.
    """
    split = split or CLASS_SPLITS[0]
    if split not in CLASS_SPLITS:
        raise ConfigError(f"data.split is '{split}'; choose one of {', '.join(CLASS_SPLITS)}")
    parts = _find_parts(Path(root))
    names = vinyals_split() if split == "vinyals" else random_split(seed)

    @functools.cache
    def files() -> dict[str, tuple[Tree, list[str]]]:
        return {name: (part, members) for part in parts for name, members in _by_class(part.members).items()}

    def classes_of(subset: str) -> list[ClassImages]:
        _check_complete(names[subset], {name: len(members) for name, (_, members) in files().items()}, Path(root))
        return [_class_images(name, *files()[name], image_size) for name in names[subset]]

    fingerprint = {"version": VERSION, "split": split, "files": [part.stamp() for part in parts]}
    if split == "random":
        fingerprint["seed"] = seed
    shape = (image_size, image_size, 1)
    account = Account("that of Matching Networks" if split == "vinyals" else f"drawn at random with seed {seed}")
    return Source(f"omniglot-{split}-{image_size}", fingerprint, shape, LazySplits(SPLITS, classes_of), account)


def vinyals_split() -> dict[str, list[str]]:
    """The class names, 'Alphabet/characterNN', of each split of Matching Networks."""
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, alphabet, first, last in read_list("omniglot_vinyals"):
        names[split] += [f"{alphabet}/character{c:02d}" for c in range(int(first), int(last) + 1)]
    return names


def random_split(seed: int) -> dict[str, list[str]]:
    """The class names of MAML's kind of split: 1100, 100 and 423 random classes."""
    everything = sorted(name for names in vinyals_split().values() for name in names)
    shuffled = [everything[i] for i in np.random.default_rng(seed).permutation(len(everything))]
    return {"train": shuffled[:1100], "val": shuffled[1100:1200], "test": shuffled[1200:]}


def _find_parts(root: Path) -> list[Tree]:
    """Finds both parts in `root`, as an archive if there is one, else as a folder."""
    parts, missing = [], []
    for part in _PARTS:
        if (root / f"{part}.zip").is_file():
            parts.append(Zip(root / f"{part}.zip"))
        elif (root / part).is_dir():
            parts.append(Folder(root / part))
        else:
            missing.append(f"{part}.zip (or the folder {part})")
    if missing:
        raise MissingFiles(
            f"Omniglot needs {' and '.join(missing)} in {root.absolute()}; get them from "
            "https://github.com/brendenlake/omniglot (python/images_background.zip and images_evaluation.zip)",
            {"data.dir": "FOLDER"},
        )
    return parts


def _by_class(members: Sequence[str]) -> dict[str, list[str]]:
    """Groups the images among `members` by class, each class in the order of the names."""
    by_class = defaultdict(list)
    for member in sorted(members):
        if match := _MEMBER.fullmatch(member):
            by_class[match["name"]].append(member)
    return by_class


def _check_complete(names: Sequence[str], counts: dict[str, int], root: Path) -> None:
    wrong = [name for name in names if counts.get(name) != IMAGES_PER_CLASS]
    if wrong:
        raise DataError(
            f"Omniglot in {root.absolute()} is incomplete: {len(wrong)} of {len(names)} classes do not have "
            f"{IMAGES_PER_CLASS} images, such as {wrong[0]} with {counts.get(wrong[0], 0)}; download or unpack it again"
        )


def _class_images(name: str, part: Tree, members: list[str], size: int) -> ClassImages:
    def load() -> np.ndarray:
        return np.stack([_image(part, member, size) for member in members])

    return ClassImages(name, len(members), load, str(part.path))


def _image(part: Tree, member: str, size: int) -> np.ndarray:
    """One image, inverted so that ink is bright: uint8 `[size, size, 1]`."""
    image = pixels.decode(part.read(member), "L", f"{member} in {part.path}")
    return 255 - images.to_square(image, size, Image.Resampling.LANCZOS)


DATA_SET = DataSet(
    "omniglot",
    lambda data, root: source(root, data.split, data.image_size, data.split_seed),
    TERMS,
    downloads=ARCHIVES,
)
