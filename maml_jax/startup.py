"""What every verb begins with: the devices, the data, and the experiment built of them."""

import atexit
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax

from maml_jax import data
from maml_jax.config import Config
from maml_jax.errors import DeviceError
from maml_jax.experiment import Experiment, stored_data
from maml_jax.parallel import GOES_ON
from maml_jax.progress import say, silence

_SILENCE = 30  # seconds after which a process counts as ended
_SHUTDOWN = 15  # seconds to wait for the others at the end
_WATCH = 'trap "" HUP INT TERM; read -r over || echo "$0" >&2'  # until there is a line, or nobody to write one

_watchers: list[subprocess.Popen] = []


def start_jax(parallel: Config) -> None:
    """Sets up the devices of this process, and its place among several.

    A CPU is made several devices, which take tasks side by side: on small tensors, XLA alone leaves cores idle. Of
    several processes, the others end when one has ended, or been silent for half a minute. Since JAX may end them
    before they can say why, each leaves a word.

    Raises:
      DeviceError: there is no device of the kind asked for, or other processes are not there.
    """
    with contextlib.suppress(RuntimeError):  # JAX has started, as within a program of the user's own
        jax.config.update("jax_num_cpu_devices", parallel.cpu_devices or _cores())
    place = (parallel.coordinator, parallel.processes, parallel.process) if parallel.coordinator != "auto" else ()
    try:
        if parallel.coordinator:
            jax.distributed.initialize(*place, heartbeat_timeout_seconds=_SILENCE, shutdown_timeout_seconds=_SHUTDOWN)
        me, processes = jax.process_index(), jax.process_count()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, of a platform that is not installed
        reason = " ".join(str(error).split()) or "there is no such device, or its part of JAX is not installed"
        asked = os.environ.get("JAX_PLATFORMS")
        way = f"; JAX_PLATFORMS={asked} asks for it, without that JAX takes what is there" if asked else ""
        raise DeviceError(f"JAX cannot start: {reason}{way}") from error
    if me > 0:
        silence()
    if processes > 1:
        _leave_word(f"error: process {me} of {processes} was ended from outside, or because another was; {GOES_ON}")


def _leave_word(message: str) -> None:
    """Has a line said on standard error when this process is ended, be it killed; not where there is no shell."""
    watch = ["/bin/sh", "-c", _WATCH, message]
    with contextlib.suppress(OSError):
        _watchers.append(
            subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        )
        atexit.register(_take_back)  # before JAX's own end


def _take_back() -> None:
    """The word is not said."""
    while _watchers:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            _watchers.pop().communicate(b"\n", timeout=10)


def end_at_once(status: int) -> None:
    """Ends this process: JAX's own end would wait for the other processes, and abort if one does not come."""
    _take_back()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def open_experiment(config: Config, workdir: Path, trained: Config | None = None) -> Experiment:
    """Opens the data and builds the experiment: to train, unless it has been `trained`.

    Args:
      config: checked.
      workdir: where results go, for the message.
      trained: the configuration that the model was trained under.

    Raises:
      UserError: data and configuration do not go together.
    """
    if config.model.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    jax.config.update("jax_debug_nans", config.debug)
    stores = data.open_stores(stored_data(config))
    experiment = Experiment.of(config, stores, trained is None, trained)
    jax.config.update("jax_compilation_cache_dir", str(data.default_cache_dir() / "xla"))
    say(
        f"jax {jax.__version__} on {len(jax.devices())} {jax.devices()[0].device_kind} device(s), "
        f"work directory {workdir}"
    )
    say_what_surprises(experiment)
    return experiment


def say_what_surprises(experiment: Experiment) -> None:
    """Says what a user might not expect of the devices, or of JAX's own settings."""
    used, there, tasks = len(experiment.devices), len(jax.devices()), experiment.training.tasks
    if experiment.tasks is not None and used < there:
        say(f"{used} of the {there} devices take part in training, which share train.tasks={tasks} evenly")
    if jax.config.jax_enable_x64:
        say("JAX_ENABLE_X64 is set: images, parameters and results are float32 all the same")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
