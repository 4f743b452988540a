"""The files of a work directory, written so that a crash leaves no half of one."""

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from maml_jax.errors import DataError


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Calls `write` with a temporary file, then renames it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON and a line's end, in which NaN and infinities, which JSON has not, are null; None for `indent`: one line."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False) + "\n"


_METRICS = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """What a `MetricsWriter` wrote, a row for each line.

    Raises:
      DataError: it is damaged.
    """
    path = workdir / _METRICS
    try:
        return [json.loads(line) for line in _whole_lines(path)]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file that have an end; a crash may have left half of one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


class MetricsWriter:
    """Writes scalars to `metrics.jsonl`, one object per line, and to TensorBoard.

    Args:
      workdir: the run's folder.
      resume_step: what an earlier start wrote beyond this meta-step is dropped, since it will come again.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self._path = workdir / _METRICS
        kept = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= resume_step]
        write_whole(self._path, lambda file: file.write("".join(kept).encode()))
        self._file = self._path.open("a")
        import tensorboardX  # takes long to load, and only training needs it

        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, split: str, **scalars: float) -> None:
        """Adds one line: `step` meta-steps taken, the `split` measured on, and the scalars."""
        self._file.write(to_json({"step": step, "split": split, **scalars}, indent=None))
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._board.close()


class NoMetrics(contextlib.nullcontext):
    """Stands in for a `MetricsWriter` in all processes but the first."""

    def write(self, step: int, split: str, **scalars: float) -> None:
        """Writes nothing."""
