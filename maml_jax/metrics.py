"""What training measures along the way: lines of `metrics.jsonl`, and the same for TensorBoard."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from maml_jax.errors import DataError
from maml_jax.files import make_folder, to_json, writing

_METRICS = "metrics.jsonl"
_BLOCK = 1 << 16  # bytes read at once


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """What a `MetricsWriter` wrote, a row for each line; a crash may have left half of the last, which is left out.

    Raises:
      DataError: it is damaged.
    """
    path = workdir / _METRICS
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


class MetricsWriter:
    """Writes scalars to `metrics.jsonl`, one object per line, and to TensorBoard.

    What it has written is with the operating system when `write` returns: a process that is killed loses nothing.

    Args:
      workdir: the run's folder.
      resume_step: what an earlier start wrote beyond this meta-step is dropped, since it will come again.

    Raises:
      DiskError: it cannot be written, at first or later. Half a line is dropped at the next start.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self._path = path = workdir / _METRICS
        with writing(path):
            if path.exists():
                os.truncate(path, _length_until(path, resume_step))
            self._file = path.open("ab", buffering=0)
        self._board = _Board(workdir / "tensorboard", resume_step)

    def write(self, step: int, split: str, **scalars: float) -> None:
        """Adds one line: `step` meta-steps taken, the `split` measured on, and the scalars."""
        row = to_json({"step": step, "split": split, **scalars}, indent=None).encode()
        with writing(self._path):
            written = self._file.write(row)
            if written < len(row):  # there was room for a part
                self._file.write(row[written:])
        self._board.write(step, {f"{split}/{name}": value for name, value in scalars.items()})

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._board.close()


class NoMetrics(contextlib.nullcontext):
    """Stands in for a `MetricsWriter` in all processes but the first."""

    def __enter__(self) -> "NoMetrics":
        return self

    def write(self, step: int, split: str, **scalars: float) -> None:
        """Writes nothing."""


def _length_until(path: Path, step: int) -> int:
    """How many bytes of `metrics.jsonl` are of meta-steps up to `step`; it is read from its end, for it may be long.

    Steps rise from line to line. What a crash left half-written stands at the end, and counts as beyond.
    """
    with path.open("rb") as file:
        for line, end in _lines_from_the_end(file):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if line.endswith(b"}\n") and json.loads(line)["step"] <= step:
                    return end
    return 0


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, the last first, each with the place where it ends."""
    start = end = file.seek(0, os.SEEK_END)
    block = b""  # the bytes from `start` to `end`
    while end:
        newline = block.rfind(b"\n", 0, -1)  # that of the line before
        if newline < 0 and start:
            size = min(_BLOCK, start)
            start -= size
            file.seek(start)
            block = file.read(size) + block
        else:
            yield block[newline + 1 :], end
            block = block[: newline + 1]
            end = start + len(block)


class _Board:
    """Writes scalars for TensorBoard.

    One record after the other, each with the operating system at once: tensorboardX's own `SummaryWriter` hands them to
    a thread, which loses some when the process is killed, and leaves it waiting for ever when the disk is full.

    Args:
      folder: of the run's event files. TensorBoard reads them in the order of their names.
      resume_step: TensorBoard is told to drop what earlier files have beyond it.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.proto import event_pb2, summary_pb2  # takes long to load, and only training needs it
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        make_folder(folder)
        self._path = folder / f"events.out.tfevents.{_number(folder)}.{socket.gethostname()}"
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        with writing(self._path):
            self._file = RecordWriter(str(self._path))
            self._add(file_version="brain.Event:2")
            self._add(step=resume_step + 1, session_log=start)
            self._file.flush()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds scalars by their tags, measured after `step` meta-steps."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        with writing(self._path):
            self._add(step=step, summary=self._summary(value=values))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):  # what could not be written is tried once more
            self._file.close()

    def _add(self, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())


def _number(folder: Path) -> str:
    """What tells a start's file from those before it, in order: seconds since 1970, or more if the clock went back."""
    names = (path.name.split(".") for path in folder.glob("events.out.tfevents.*"))
    before = (int(parts[3]) for parts in names if parts[3].isdigit())
    return f"{max(int(time.time()), *(number + 1 for number in before), 0):010}"
