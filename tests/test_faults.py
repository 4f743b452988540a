"""What befalls a run from outside, made to happen: it ends with one line that says so, and goes on to the same bits."""

import dataclasses
import errno
import json
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from maml_jax import pace, train
from maml_jax.checkpoint import Checkpoints
from maml_jax.data import archive, npz, store
from maml_jax.data.source import ClassImages, Source
from maml_jax.data.store import ClassStore
from maml_jax.errors import DataError, DeviceError, DiskError
from maml_jax.files import make_folder, write_whole, writing
from maml_jax.lock import only_one
from maml_jax.metrics import MetricsWriter, read_metrics
from maml_jax.parallel import failures_explained
from tests.data.test_archive import write_tar
from tests.helpers import ROOT, TINY, assert_same, experiment, image_tasks, start_python


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The arrays of the last checkpoint of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    train.train(experiment(), folder)
    return arrays(folder)


def arrays(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.read("latest")[0]


def after(step, act, monkeypatch):
    """Has something happen once, when the metrics of a meta-step have been written."""
    write = MetricsWriter.write

    def then(self, at, split, **scalars):
        write(self, at, split, **scalars)
        if at == step and split == "train":
            monkeypatch.setattr(MetricsWriter, "write", write)
            act()

    monkeypatch.setattr(MetricsWriter, "write", then)


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def short_files():
    """No file may grow beyond 4 KiB, which fails in the middle of it as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_disk_is_full_while_checkpointing(disk, whole, monkeypatch, capfd):
    def fill():
        with open(disk / "ballast", "wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass

    def fill_up():
        with pytest.raises(OSError, match="No space left"):
            fill()

    after(6, fill_up, monkeypatch)
    with pytest.raises(DiskError, match=rf"cannot write {disk}/checkpoints/\w+/\d+: No space left on device"):
        train.train(experiment(), disk)
    assert not list(disk.glob("checkpoints/*/*tmp*"))
    assert "Traceback" not in capfd.readouterr().err
    assert arrays(disk)["step"] == 5
    (disk / "ballast").unlink()
    train.train(experiment(), disk)
    assert_same(arrays(disk), whole, 0)
    assert [r["step"] for r in read_metrics(disk) if r["split"] == "val"] == [4, 8, 12]


def test_the_disk_is_full_while_metrics_are_written(tmp_path, short_files):
    """Half of a line may be there, and is dropped."""
    row = {f"a_rather_long_name_{i}": 1 / 3 for i in range(10)}
    writer = MetricsWriter(tmp_path, 0)
    with pytest.raises(DiskError, match=r"cannot write .*metrics\.jsonl: File too large"):
        [writer.write(step, "train", **row) for step in range(1000)]
    writer.__exit__()
    assert not (tmp_path / "metrics.jsonl").read_text().endswith("\n")
    rows = read_metrics(tmp_path)
    short_files()
    with MetricsWriter(tmp_path, len(rows)) as writer:
        writer.write(len(rows), "train", loss=1.0)
    assert read_metrics(tmp_path) == [*rows, {"step": len(rows), "split": "train", "loss": 1.0}]


def test_the_disk_is_full_while_a_store_is_built(tmp_path, short_files):
    classes = [ClassImages(str(c), 1, lambda c=c: np.full((1, 16, 16, 3), c, np.uint8)) for c in range(20)]
    source = Source("large", {}, (16, 16, 3), {"train": classes})
    with pytest.raises(DataError, match=r"cannot write the store .*File too large"):
        store.build(source, tmp_path / "stores", progress=False)
    assert not list(tmp_path.iterdir())
    short_files()
    store.verify(store.build(source, tmp_path / "stores", progress=False))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.npz"])
def test_the_disk_is_full_while_a_file_is_unpacked(disk, tmp_path, monkeypatch, name):
    """Which is not damaged, so that to download it again would help nobody."""
    content = np.random.default_rng(0).integers(0, 256, (4, 1000, 1000), np.uint8)
    if name == "x.npz":
        np.savez_compressed(tmp_path / name, images=content)
        read = lambda path: npz._open_npz(path, "images")  # noqa: E731
    else:
        write_tar(tmp_path / name, {"a/1.png": content.tobytes()})
        read = lambda path: archive.open_tree(path).members  # noqa: E731
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    message = rf"cannot unpack \S*{name}.* in {disk}: No space left on device; set TMPDIR to a folder with room"
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert "download" not in str(caught.value)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert read(tmp_path / name)


def test_a_read_only_work_directory(disk):
    make_folder(disk / "checkpoints")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ways = {
        "run: Read-only": lambda: make_folder(disk / "run"),
        "config.json: Read-only": lambda: write_whole(disk / "config.json", lambda file: None),
        "metrics.jsonl: Read-only": lambda: MetricsWriter(disk, 0),
        "latest: Read-only": lambda: Checkpoints(disk / "checkpoints").save("latest", 1, {"step": np.int32(1)}),
        ".lock: Read-only": lambda: only_one(disk).__enter__(),
    }
    for message, write in ways.items():
        with pytest.raises(DiskError, match=f"cannot write .*{message}"):
            write()


def test_the_innermost_file_is_named(tmp_path):
    refused = pytest.raises(DiskError, match=r"cannot write inner: Input/output error")
    with refused, writing(tmp_path / "outer"), writing(Path("inner")):
        raise OSError(errno.EIO, "Input/output error")


def test_a_file_where_the_work_directory_should_be(launch, tmp_path):
    (tmp_path / "run").touch()
    status, _, err = launch("--workdir", tmp_path / "run", *TINY)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: cannot write {tmp_path / 'run'}: ")


def mapped(folder):
    """The experiment, with images that are mapped from a file, and that file."""
    tasks = image_tasks()
    np.save(folder / "train.npy", tasks.pixels)
    images = np.load(folder / "train.npy", mmap_mode="r")
    tasks = {s: dataclasses.replace(image_tasks(s), pixels=images) for s in ("train", "val", "test")}
    stored = ClassStore(images, np.asarray(tasks["train"].offsets, np.int64), tuple("abcdef"), "train")
    return dataclasses.replace(experiment(tasks=tasks), stores={"train": stored}), folder / "train.npy"


def test_images_are_changed_under_a_running_job(tmp_path, whole, monkeypatch):
    """Nothing that was computed of them is kept, and once they are there again the run goes on."""
    changing, file = mapped(tmp_path)
    before = file.read_bytes()

    def change():
        with file.open("r+b") as images:
            images.seek(200)
            images.write(bytes(50))

    after(6, change, monkeypatch)
    with pytest.raises(DataError, match=r"train\.npy was changed while it was in use"):
        train.train(changing, tmp_path)
    assert arrays(tmp_path)["step"] == 5
    file.write_bytes(before)
    train.train(mapped(tmp_path)[0], tmp_path)
    assert_same(arrays(tmp_path), whole, 0)


def test_a_store_is_deleted_under_a_running_job(tmp_path, whole, monkeypatch):
    """Which has it open, and ends as if it were there."""
    deleting, file = mapped(tmp_path)
    after(6, file.unlink, monkeypatch)
    train.train(deleting, tmp_path)
    assert_same(arrays(tmp_path), whole, 0)


@pytest.mark.parametrize("platform", ["abacus", "tpu"])  # the latter is known, but not installed
def test_there_is_no_such_device(tmp_path, cache, platform):
    program = [ROOT / "launch.py", "--workdir", tmp_path / "run", *TINY]
    process = start_python(*program, cwd=tmp_path, JAX_PLATFORMS=platform, MAML_JAX_CACHE=str(cache))
    _, err = process.communicate(timeout=500)
    assert process.returncode == 2, err
    assert platform in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_device_fails(tmp_path, whole, monkeypatch):
    spread, calls = train.spread, []

    def failing(function, *args, **kwargs):
        compiled = spread(function, *args, **kwargs)

        def call(*arguments):
            calls.append(None)
            if len(calls) == 10:
                raise jax.errors.JaxRuntimeError("INTERNAL: the device has fallen off the bus\nand more")
            return compiled(*arguments)

        return call

    monkeypatch.setattr(train, "spread", failing)
    with pytest.raises(DeviceError, match=r"a device failed \(INTERNAL: the device has fallen off the bus\); the same"):
        train.train(experiment(), tmp_path)
    monkeypatch.undo()
    assert 0 < arrays(tmp_path)["step"] < 12
    train.train(experiment(), tmp_path)
    assert_same(arrays(tmp_path), whole, 0)


def test_what_the_machine_is_not_to_blame_for_stays_as_it_is():
    for text in ("INVALID_ARGUMENT: shapes", "INTERNAL: CpuCallback error: ValueError"):
        with pytest.raises(jax.errors.JaxRuntimeError), failures_explained():
            raise jax.errors.JaxRuntimeError(text)
    with pytest.raises(DeviceError, match=r"too little memory .*train\.tasks_at_once=1"), failures_explained():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes")


def test_fewer_devices_on_resuming(tmp_path, whole):
    """The same tasks, whose gradients are added in another order."""
    train.train(experiment(steps=7), tmp_path)
    train.train(dataclasses.replace(experiment(), devices=jax.devices()[:1]), tmp_path)
    assert_same(arrays(tmp_path), whole, 1e-4)


def test_a_clock_that_goes_backwards(tmp_path, whole, monkeypatch):
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    train.train(experiment(steps=7), tmp_path)
    (first,) = (path.name for path in (tmp_path / "tensorboard").iterdir())
    train.train(experiment(), tmp_path)
    assert_same(arrays(tmp_path), whole, 0)
    assert all(r["tasks_per_second"] > 0 for r in read_metrics(tmp_path) if r["split"] == "train")
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert len(names) == 2
    assert names[0] == first  # TensorBoard reads them in this order


def test_a_scheduler_need_not_wait_for_a_long_report(tmp_path, whole, monkeypatch):
    """A signal is heard between calls, of which a report has many; what was taken is kept."""
    taken, calls = pace.Pace.call_taken, []

    def signalled(self, stop):
        calls.append(None)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return taken(self, stop or len(calls) == 4)

    monkeypatch.setattr(pace.Pace, "call_taken", signalled)
    long = {"report_every": 10_000, "steps": 10_000, "validate_every": 0, "checkpoint_every": 10_000}
    with pytest.raises(train.Interrupted):
        train.train(experiment(**long), tmp_path)
    assert 4 <= arrays(tmp_path)["step"] <= 12
    monkeypatch.undo()
    train.train(experiment(), tmp_path)
    assert_same(arrays(tmp_path), whole, 0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_calls_grow_while_they_are_short(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    measured, steps = pace.Pace(), []
    for seconds in (60, 1, 1, 3, 9, 3):  # the first of which is not counted, since a compilation may be in it
        now[0] += seconds
        measured.call_taken(False)
        steps.append(measured.steps)
    assert steps == [1, 2, 4, 4, 2, 2]
