"""Trained models as folders of plain files: written once, checked to the last bit before use, and never executed.

A folder holds `model.safetensors` (arrays by names such as 'params.encoder.block1.conv.kernel'), `config.json` (the
run's, with the number of this format), `README.md` (a card: what it is, and how good), and `checksums.json`, the
SHA-256 of each of the others.
"""

import contextlib
import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from maml_jax import config as config_lib
from maml_jax import tree
from maml_jax.config import Config
from maml_jax.config.transfer import anywhere
from maml_jax.episode import Episode
from maml_jax.errors import ConfigError, DataError, UserError
from maml_jax.experiment.method import build_method
from maml_jax.models.arguments import Parser
from maml_jax.models.card import card
from maml_jax.models.trained import Trained
from maml_jax.progress import say
from maml_jax.tree import PyTree

FORMAT = 1
ARRAYS, CONFIG, CARD, CHECKSUMS = "model.safetensors", "config.json", "README.md", "checksums.json"
SHIPPED = Path(__file__).parent / "shipped"
"""Models that come with this library, a folder each."""
_MOST_TEXT = 2**20  # bytes of any file but the arrays
_LARGEST = 1024  # pixels of an image's side


def load(name_or_dir: str | os.PathLike[str], own_code: bool = False) -> Trained:
    """A trained model, ready to adapt: `maml_jax.load("runs/mine").adapt(images, labels).predict(others)`.

    Args:
      name_or_dir: a name of `shipped`, a folder that `export` wrote, or the work directory of a run.
      own_code: import the encoder where it is 'package.module:Class', code that does not belong to this library.

    Raises:
      DataError: there is no such model, or its files are missing, damaged, altered, or of something else.
    """
    folder = find(name_or_dir)
    try:
        return _from_folder(folder, own_code) if is_exported(folder) else _from_run(folder, own_code)
    except ConfigError as error:
        raise DataError(f"cannot use the model {folder}: {error.facts}") from error


def is_exported(folder: Path) -> bool:
    """Whether a folder is what `export` writes, against the work directory of a run, which is checked no further."""
    return (folder / CHECKSUMS).exists() or (folder / ARRAYS).exists()


def shipped() -> list[str]:
    """The names of the models that come with this library."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CHECKSUMS}"))


def export(workdir: Path, folder: Path, own_code: bool = False) -> None:
    """Writes the model of a run as a folder, whole or not at all; one that was exported there before is replaced.

    Args:
      workdir: of the run. Of its checkpoints, that which `eval.checkpoint` names is taken.
      folder: where to.
      own_code: as of `load`.

    Raises:
      DataError: there is no run, its weights are not finite, or the folder holds something else.
    """
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _NAMES):
        raise DataError(f"{folder} holds something else; name another folder, or an empty one")
    model = load(workdir, own_code)
    arrays = {name: np.asarray(leaf) for name, leaf in named(model).items()}
    facts = {"step": str(model.step)}  # one, for the order of several is another every time, and so were the SHA-256
    content = {
        ARRAYS: safetensors.numpy.save(arrays, facts),
        CONFIG: (
            json.dumps({"format": FORMAT, **json.loads(config_lib.to_json(anywhere(model.config)))}, indent=2) + "\n"
        ).encode(),
    }
    digest = hashlib.sha256(content[ARRAYS]).hexdigest()
    content[CARD] = card(folder.name, workdir, model.config, model.step, arrays, digest).encode()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    content[CHECKSUMS] = (json.dumps(sums, indent=2) + "\n").encode()
    _write_folder(folder, content)


_NAMES = {ARRAYS, CONFIG, CARD, CHECKSUMS}


def _write_folder(folder: Path, content: Mapping[str, bytes]) -> None:
    """Writes files into a folder beside `folder`, which then takes its place."""
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            for name, data in content.items():
                (new / name).write_bytes(data)
            if folder.exists():
                os.rename(folder, old)
            try:
                os.rename(new, folder)
            except OSError:
                if old.exists():
                    os.rename(old, folder)
                raise
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error


def find(name_or_dir: str | os.PathLike[str]) -> Path:
    """The folder that a model's name, or a path, stands for; a DataError if there is none."""
    text = str(name_or_dir)
    if text in shipped():
        return SHIPPED / text
    if Path(text).is_dir():
        return Path(text)
    if Path(text).exists():
        raise DataError(f"{text} is a file; name the folder that it lies in")
    close = difflib.get_close_matches(text, shipped(), 1)
    hint = f"did you mean {close[0]}?" if close else f"the names are {', '.join(shipped()) or 'none yet'}"
    raise DataError(f"there is no trained model {text!r}: no such folder, and no such name; {hint}")


def settings(folder: Path) -> Config:
    """The configuration that an exported model was trained under, once all files are what they were when written.

    Raises:
      DataError: files are missing, damaged, altered, or of something else.
      ConfigError: it holds a field or value that does not exist.
    """
    with _damage(folder / CHECKSUMS):
        sums = json.loads(_read(folder / CHECKSUMS))
        if not isinstance(sums, dict) or set(sums) != _NAMES - {CHECKSUMS}:
            raise ValueError("it does not list the files that belong to a model")
    for name in sums:
        if sha256(folder / name) != sums[name]:
            raise DataError(f"{folder / name} is damaged or was altered: its SHA-256 is not that of {CHECKSUMS}")
    with _damage(folder / CONFIG):
        stored = json.loads(_read(folder / CONFIG))
        if stored.pop("format") != FORMAT:
            raise ValueError("it is of another format, which another version of this program wrote")
    return config_lib.from_json(json.dumps(stored), folder / CONFIG)


def _from_folder(folder: Path, own_code: bool) -> Trained:
    config = settings(folder)
    with _damage(folder / ARRAYS), safetensors.safe_open(folder / ARRAYS, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        kinds = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
        channels, like = _fit(config, kinds, folder / ARRAYS, own_code)  # before anything large is read
        arrays = {name: file.get_tensor(name) for name in slices}
        step = int(file.metadata()["step"])
    return _trained(config, channels, like, arrays, step)


def _from_run(workdir: Path, own_code: bool) -> Trained:
    from maml_jax.checkpoint import Checkpoints  # takes long to import

    if not (workdir / CONFIG).exists():
        raise DataError(f"{workdir} holds neither a trained model ({CHECKSUMS}, {ARRAYS}, ...) nor a run ({CONFIG})")
    config = config_lib.load(workdir / CONFIG)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        stored, path = checkpoints.read(config.eval.checkpoint)
    arrays = {name: np.asarray(leaf) for name, leaf in stored.items() if name.startswith(("params.", "stats."))}
    kinds = {name: (leaf.shape, _DTYPES.get(leaf.dtype.name, leaf.dtype.name)) for name, leaf in arrays.items()}
    channels, like = _fit(config, kinds, path, own_code)
    return _trained(config, channels, like, arrays, int(stored["step"]))


_DTYPES = {"float32": "F32", "float64": "F64"}


def _fit(config: Config, kinds: Mapping[str, tuple], path: Path, own_code: bool) -> tuple[int, PyTree]:
    """The channels of the model's images, and its shapes; refuses arrays of another model.

    Args:
      config: what the model is by its configuration.
      kinds: shape and type of each array by name.
      path: where they are, for messages.
      own_code: as of `load`.
    """
    config_lib.check(config)
    if config.model.loss == "squared_error":
        raise DataError(f"{path} is a model of numbers, and not of images in classes")
    if ":" in config.model.encoder and not own_code:
        raise DataError(
            f"the encoder of {path} is {config.model.encoder}, code that does not belong to this program, and is not "
            "run unless you ask for it: own_code=True, or --own-code"
        )
    if max(config.data.image_size, config.data.stored_size) > _LARGEST:
        raise DataError(f"{path} is of images of more than {_LARGEST} x {_LARGEST} pixels")
    wanted = (1, 3) if config.data.channels == "auto" else (int(config.data.channels),)
    likes = {channels: _like(config, channels) for channels in wanted}
    misfits = {channels: list(_misfits(like, kinds)) for channels, like in likes.items()}
    channels = min(misfits, key=lambda channels: len(misfits[channels]))
    if misfits[channels]:
        raise DataError(f"{path} is of another model than its {CONFIG} says: {misfits[channels][0]}")
    return channels, likes[channels]


def _like(config: Config, channels: int) -> PyTree:
    """Shapes of all that is meta-learned."""
    method, size, way = build_method(config, config.task.way), config.data.image_size, config.task.way
    x = jax.ShapeDtypeStruct((way, size, size, channels), jnp.float32)
    y = jax.ShapeDtypeStruct((way,), jnp.int32)
    init = lambda x, y: method.init(jax.random.key(0), Episode(x, y, x, y))  # noqa: E731
    params, stats = jax.eval_shape(init, x, y)
    return {"params": params, "stats": stats}


def _misfits(like: PyTree, kinds: Mapping[str, tuple]) -> Iterator[str]:
    wanted = {name.replace("/", "."): (leaf.shape, "F32") for name, leaf in tree.by_name(like).items()}
    for name in sorted(wanted.keys() | kinds.keys()):
        got, want = (_kind(kinds.get(name), "lacking"), _kind(wanted.get(name), "unknown"))
        if got != want:
            yield f"{name} is {got}, expected {want}"


def _kind(kind: tuple | None, otherwise: str) -> str:
    return f"{kind[1]} {list(kind[0])}" if kind else otherwise


def _trained(config: Config, channels: int, like: PyTree, arrays: Mapping, step: int) -> Trained:
    for name, leaf in arrays.items():
        if not np.isfinite(leaf).all():
            raise DataError(f"the model is of no use: {name} is not finite; its training diverged")
    filled = tree.map_named(lambda name, _: jnp.asarray(arrays[name.replace("/", ".")]), like)
    return Trained(config.lock(), channels, filled["params"], filled["stats"], step)


def named(model: Trained) -> dict[str, Any]:
    """All arrays of a model by the names that they are stored under, such as 'params.encoder.block1.conv.kernel'."""
    leaves = tree.by_name({"params": model.params, "stats": model.stats})
    return {name.replace("/", "."): leaf for name, leaf in leaves.items()}


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its reader raise, as an error that names it."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as e:
        reason = f"it lacks {e}" if isinstance(e, KeyError) else " ".join(str(e).split())
        raise DataError(f"cannot read {path}: {reason}") from e


def _read(path: Path) -> bytes:
    """The content of a small file."""
    _size(path)
    with path.open("rb") as file:
        content = file.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise DataError(f"{path} is too large for what it should be")
    return content


def _size(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path.parent} lacks {path.name}")
    if not path.is_file():
        raise DataError(f"{path} is no file")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; a DataError if it cannot be read."""
    _size(path)
    with _damage(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> int:
    """The verb `export`."""
    parser = Parser("export", "Writes the model of a run as a folder that `predict` and `maml_jax.load` take.")
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="of the run")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="where to; an earlier one is replaced")
    parser.add_argument("--own-code", action="store_true", help="import an encoder that is code of your own")
    given = parser.parse_args(arguments)
    export(given.workdir, given.to, given.own_code)
    say(f"wrote {given.to}: {', '.join(sorted(_NAMES))}")
    return 0
