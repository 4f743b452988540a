"""What the verbs of the command line do, for a checked configuration and a work directory."""

import contextlib
import os
import time
from pathlib import Path

import jax
import ml_collections

from maml_jax import config as config_lib
from maml_jax import data, experiment
from maml_jax import evaluate as evaluation
from maml_jax import train as training
from maml_jax.checkpoint import Checkpoints
from maml_jax.data import sinusoid
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import Images, place
from maml_jax.files import write_whole
from maml_jax.progress import duration, say, silence


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Meta-trains, going on where the run is, and evaluates.

    Raises:
      KeyboardInterrupt: asked to stop, and the steps taken are in a checkpoint.
    """
    stored = workdir / "config.json"
    if stored.exists():
        config_lib.check_same_run(config, config_lib.load(stored), workdir)
    stores = _begin(config, workdir, training=True)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_whole(stored, lambda file: file.write(config_lib.to_json(config).encode()))
    splits = ["train", "val"] if config.train.validate_every else ["train"]
    try:
        training.train(config, _placed(config, {split: stores[split] for split in splits}), workdir)
    except training.Interrupted as interrupted:
        raise KeyboardInterrupt(str(interrupted)) from interrupted
    _evaluate(config, stores, workdir)


def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Evaluates the run of a work directory under these settings."""
    stores = _begin(config, workdir, training=False)
    config_lib.existing(workdir)
    _evaluate(config, stores, workdir)


def _begin(config: ml_collections.ConfigDict, workdir: Path, training: bool) -> dict[str, ClassStore]:
    """Starts JAX and opens the stores, once it is sure that they and the devices are what is needed."""
    _start_jax(config.parallel)
    if config.model.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    experiment.check_devices(config)
    stores = data.open_stores(experiment.stored_data(config))
    experiment.check_data(config, stores, training=training)
    jax.config.update("jax_compilation_cache_dir", str(data.default_cache_dir() / "xla"))
    say(
        f"jax {jax.__version__} on {len(jax.devices())} {jax.devices()[0].device_kind} device(s), "
        f"work directory {workdir}"
    )
    return stores


def _evaluate(config: ml_collections.ConfigDict, stores: dict[str, ClassStore], workdir: Path) -> None:
    split = config.eval.split
    images = _placed(config, {split: stores[split]})[split]
    if config.data.name == sinusoid.NAME:
        from maml_jax import regression  # draws, which takes a second to load

        print(regression.evaluate(config, images, workdir))
    else:
        _score(config, images, workdir)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_jax(parallel: ml_collections.ConfigDict) -> None:
    """Sets up the devices of this process, and its place among several.

    A CPU is made several devices, which take tasks side by side: on small tensors, XLA alone leaves cores idle.
    """
    with contextlib.suppress(RuntimeError):  # JAX has started, as within a program of the user's own
        jax.config.update("jax_num_cpu_devices", parallel.cpu_devices or _cores())
    if parallel.coordinator == "auto":
        jax.distributed.initialize()
    elif parallel.coordinator:
        jax.distributed.initialize(parallel.coordinator, parallel.processes, parallel.process)
    if jax.process_index() > 0:
        silence()


def _placed(config: ml_collections.ConfigDict, stores: dict[str, ClassStore]) -> dict[str, Images]:
    images = place(stores, config.data.placement, config.data.device_share)
    if images == stores:
        size = sum(store.nbytes for store in stores.values())
        say(f"the {' and '.join(stores)} images ({size / 2**30:.2f} GiB) stay on the host and are streamed")
    return images


def _score(config: ml_collections.ConfigDict, images: Images, workdir: Path) -> None:
    e = config.eval
    trained = config_lib.load(workdir / "config.json")
    like = config.copy_and_resolve_references()
    like.model.norm = trained.model.norm
    shape = experiment.image_shape(config, images)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(e.checkpoint, training.fresh_state(like, shape))
    if like.model.norm != config.model.norm:
        state = training.renormalized(state, training.fresh_state(config, shape))
    began = last = time.monotonic()

    def progress(done):
        nonlocal last
        now = time.monotonic()
        if now - last > 10:
            last = now
            say(f"evaluated {done} of {e.tasks} tasks, {duration((now - began) / done * (e.tasks - done))} left")

    result = evaluation.Evaluator(config, images, e.split)(state.params, state.stats, e.tasks, progress)
    if jax.process_index() > 0:
        return
    evaluation.write(workdir, config, result, int(state.step))
    print(
        f"{e.split} accuracy {result.accuracy:.2%} ± {result.ci95:.2%} over {e.tasks} tasks, "
        f"{e.way}-way {e.shot}-shot, {e.query} queries per class, {e.steps} inner steps, "
        f"meta-step {int(state.step)} ({e.checkpoint})"
    )


def prepare(config: ml_collections.ConfigDict, check: bool) -> None:
    """Builds and verifies the store, or with `check` verifies the one that is there, and says what is in it."""
    report = data.prepare(experiment.stored_data(config), check=check)
    print(f"{report['name']}: verified {report['path']}\n{report['terms']}")
    height, width, channels = report["image_shape"]
    for split, facts in report["splits"].items():
        mean, std = (", ".join(f"{value:.4f}" for value in facts[name]) for name in ("mean", "std"))
        print(
            f"  {split:5} {facts['classes']:5} classes {facts['images']:7} images {facts['bytes'] / 2**20:8.1f} MiB  "
            f"mean {mean}  std {std}"
        )
    print(f"  images of {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}; means of pixels in [0, 1]")
    for split, facts in report["splits"].items():
        if facts["published"] not in (None, facts["classes"]):
            say(
                f"note: the published {split} split of {report['name']} has {facts['published']} classes, this one "
                f"{facts['classes']}: results on it are not comparable"
            )
