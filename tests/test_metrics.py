"""Metrics: nothing is lost to a kill, nothing comes twice, and a long file takes no longer to go on with."""

import io
import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maml_jax import metrics
from maml_jax.errors import DataError
from maml_jax.metrics import MetricsWriter, read_metrics
from tests.tensorboard import scalars


def row(step, **values):
    return json.dumps({"step": step, "split": "train", **values}) + "\n"


def test_metrics_after_a_crash(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(row(5, loss=1.0) + row(10, loss=0.5) + '{"step": 1')
    with MetricsWriter(tmp_path, resume_step=5) as writer:
        writer.write(10, "train", loss=0.25)
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(5, 1.0), (10, 0.25)]


def length(content, step):
    """What is kept of a file."""
    file = types.SimpleNamespace(open=lambda mode: io.BytesIO(content))
    return metrics._length_until(file, step)


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_what_is_kept_wherever_the_file_ends(monkeypatch, block):
    """At any byte, whatever is read at once; and a power failure may leave zeros."""
    monkeypatch.setattr(metrics, "_BLOCK", block)

    rising = st.lists(st.integers(0, 12), max_size=6).map(sorted)

    @given(rising, st.integers(0, 200), st.integers(-1, 13), st.booleans())
    def check(steps, cut, resume, zeros):
        lines = [row(step, x="é") for step in steps]
        content = "".join(lines).encode()[: cut if cut else None]
        kept = "".join(line for line, step in zip(lines, steps, strict=True) if step <= resume).encode()
        while kept and not content.startswith(kept):
            kept = kept[: kept.rfind(b"\n", 0, -1) + 1]
        assert length(content + b"\0" * 20 * zeros, resume) == len(kept)

    check()


def test_a_long_file_is_not_read_through(monkeypatch):
    """A million lines, of which the last thousand are dropped."""
    read = []

    class File(io.BytesIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    content = "".join(map(row, range(1_000_000))).encode()
    parsed, loads = [], json.loads
    monkeypatch.setattr(metrics.json, "loads", lambda line: parsed.append(line) or loads(line))
    path = types.SimpleNamespace(open=lambda mode: File(content))
    end = metrics._length_until(path, 998_999)
    assert content[:end].endswith(row(998_999).encode())
    assert len(parsed) == 1001
    assert 0 < sum(read) < 200_000


def test_damage_to_what_is_kept_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{no row}\n" + row(3))
    with pytest.raises(DataError, match=r"cannot read .*metrics\.jsonl"):
        read_metrics(tmp_path)


def test_tensorboard_shows_what_the_lines_say(tmp_path, monkeypatch):
    """Though no writer was closed, as if killed, and though the clock was set back before the second start."""
    clock = iter([2_000_000_000.0, *[1_000_000_000.0] * 100])
    monkeypatch.setattr(metrics.time, "time", lambda: next(clock))
    writers = [MetricsWriter(tmp_path, 0)]
    writers[0].write(2, "train", loss=1.0)
    writers[0].write(4, "train", loss=0.5)
    writers[0].write(4, "val", accuracy=0.25)
    assert len(scalars(tmp_path / "tensorboard")) == 3
    for _ in range(2):
        writers.append(MetricsWriter(tmp_path, 2))
        writers[-1].write(3, "train", loss=0.75)
    assert scalars(tmp_path / "tensorboard") == {("train/loss", 2): 1.0, ("train/loss", 3): 0.75}
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(2, 1.0), (3, 0.75)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    for writer in writers:
        writer.__exit__()
