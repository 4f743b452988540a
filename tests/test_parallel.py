"""Any number of devices and processes, by either backend: the same tasks, the same parameters."""

import socket

import jax
import numpy as np
import optax
import pytest
from jax import lax

from maml_jax import tree
from maml_jax.errors import ConfigError
from maml_jax.meta.inner import InnerLoop, all_but, sgd
from maml_jax.meta.outer import Maml
from maml_jax.meta.step import init_state, meta_step
from maml_jax.parallel import AXIS, check_devices, choose_devices, device_memory, my_share, replicate, spread
from tests.helpers import assert_same, episodes, one_task, small, start_python


def train(devices, backend="shard_map"):
    """The state, by name, after 20 meta-steps on the same four tasks, whose order changes from step to step."""
    inner = InnerLoop(sgd({"encoder": 0.3, "head": 0.2}), all_but("norm"))
    method, optimizer = Maml(small("block1=global, batch"), inner, 1), optax.adam(1e-2)

    def run(state, tasks):
        def one(i, state):
            share = jax.tree.map(lambda x: x[(my_share(4) + i) % 4], tasks)
            return meta_step(method, optimizer, state, share, axis=AXIS)[0]

        return lax.fori_loop(0, 20, one, state)

    state = init_state(method, optimizer, jax.random.key(0), one_task())
    arguments = replicate((state, episodes(tasks=4)), devices)
    return tree.by_name(jax.device_get(spread(run, devices, backend, donate=(0,))(*arguments)))


@pytest.fixture(scope="module")
def on_one_device():
    with jax.enable_x64(True):
        state = train(jax.devices()[:1])
    assert len(state) > 10
    return state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("devices", "backend"), [(2, "shard_map"), (4, "shard_map"), (1, "pmap"), (4, "pmap")])
def test_devices_and_backends_agree(on_one_device, devices, backend):
    assert_same(train(jax.devices()[:devices], backend), on_one_device, 1e-10)


_WORKER = """
import sys
from tests import conftest, test_parallel
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[4])
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
assert len(jax.devices()) == 4
np.savez(sys.argv[3], **test_parallel.train(jax.devices()))
"""


def test_two_processes_agree_with_one(tmp_path, on_one_device):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    workers = [start_python("-c", _WORKER, address, i, tmp_path / f"{i}.npz", tmp_path / "xla") for i in (0, 1)]
    errors = [worker.communicate(timeout=500)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    for i in (0, 1):
        with np.load(tmp_path / f"{i}.npz") as state:
            assert_same(dict(state), on_one_device, 1e-10)


def test_choice_of_devices():
    assert [len(choose_devices(tasks, 0)) for tasks in (1, 2, 3, 4, 6, 8)] == [1, 2, 3, 4, 3, 4]
    assert len(choose_devices(4, 2)) == 2


@pytest.mark.parametrize(
    ("count", "at_once", "message", "settings"),
    [
        (5, 0, r"parallel\.devices=5, but there are only 4", {"parallel.devices": 0}),
        (3, 0, r"parallel\.devices=3 does not divide train\.tasks=4", {"parallel.devices": 0}),
        (0, 4, r"train\.tasks_at_once=4 does not divide the 1 tasks of a device", {"train.tasks_at_once": 0}),
    ],
)
def test_an_uneven_distribution_is_refused(count, at_once, message, settings):
    with pytest.raises(ConfigError, match=message) as raised:
        check_devices(4, count, at_once)
    assert raised.value.settings == settings


def test_all_devices_of_several_processes_take_part(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    check_devices(4, 0, 0)
    for tasks, count in ((3, 0), (4, 2)):
        with pytest.raises(
            ConfigError, match=rf"the 2 processes have 4 devices, .* train\.tasks={tasks} must be a mul"
        ):
            check_devices(tasks, count, 0)


def test_the_memory_of_a_device_is_known():
    assert device_memory() > 2**28
