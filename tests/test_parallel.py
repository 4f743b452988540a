"""Any number of devices and processes, by either backend: the same tasks, the same parameters."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from jax import lax
from maml_jax.meta.parallel import AXIS, choose_devices, my_share, replicate, spread

from configs import default
from maml_jax import tree
from maml_jax.errors import ConfigError
from maml_jax.experiment import check_devices
from maml_jax.meta.inner import InnerLoop, all_but, sgd
from maml_jax.meta.step import init_state, meta_step


def train(model, episodes, devices, backend):
    """The state after 20 meta-steps on the same four tasks, whose order changes from step to step."""
    inner = InnerLoop(sgd(0.3, 0.2, 0.0, 0.0), all_but("norm"))
    optimizer = optax.adam(1e-2)

    def run(state, episodes):
        def one(i, state):
            share = jax.tree.map(lambda x: x[(my_share(4) + i) % 4], episodes)
            return meta_step(model, inner, optimizer, state, share, steps=2, tasks_at_once=1, axis=AXIS)[0]

        return lax.fori_loop(0, 20, one, state)

    state = init_state(model, optimizer, jax.random.key(0))
    return jax.device_get(spread(run, devices, backend, donate=(0,))(*replicate((state, episodes), devices)))


def assert_equal_training(actual, expected):
    assert len(actual) == len(expected) > 10
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-10, atol=1e-12, err_msg=name)


def named(state):
    return dict(zip(tree.names(state), jax.tree.leaves(state), strict=True))


@pytest.fixture
def on_one_device(x64, small, episodes):
    return named(train(small("block1=global, batch"), episodes(tasks=4), jax.devices()[:1], "shard_map"))


@pytest.mark.parametrize(("devices", "backend"), [(2, "shard_map"), (4, "shard_map"), (1, "pmap"), (4, "pmap")])
def test_devices_and_backends_agree(x64, small, episodes, on_one_device, devices, backend):
    state = train(small("block1=global, batch"), episodes(tasks=4), jax.devices()[:devices], backend)
    assert_equal_training(named(state), on_one_device)


_WORKER = """
import sys
import jax
import numpy as np
from tests import conftest
from tests.meta import test_parallel
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[4])
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
model, episodes = conftest.small.__wrapped__(), conftest.episodes.__wrapped__()
assert len(jax.devices()) == 4
state = test_parallel.train(model("block1=global, batch"), episodes(tasks=4), jax.devices(), "shard_map")
np.savez(sys.argv[3], **test_parallel.named(state))
"""


def test_two_processes_agree_with_one(tmp_path, on_one_device):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, address, str(i), str(tmp_path / f"{i}.npz"), str(tmp_path / "xla")],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for i in (0, 1)
    ]
    errors = [worker.communicate(timeout=500)[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    for i in (0, 1):
        with np.load(tmp_path / f"{i}.npz") as state:
            assert_equal_training(dict(state), on_one_device)


def test_choice_of_devices():
    assert [len(choose_devices(tasks, 0)) for tasks in (1, 2, 3, 4, 6, 8)] == [1, 2, 3, 4, 3, 4]
    assert len(choose_devices(4, 2)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel.devices": 5}, r"parallel\.devices=5, but there are only 4"),
        ({"parallel.devices": 3}, r"parallel\.devices=3 does not divide train\.tasks=4"),
        ({"train.tasks_at_once": 4}, r"train\.tasks_at_once=4 does not divide the 1 tasks of a device"),
    ],
)
def test_an_uneven_distribution_is_refused(changes, message):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        check_devices(config)
