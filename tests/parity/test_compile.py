"""What the compiler makes of a meta-step for chips that are not there; and what holds for any number of them."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maml_jax.parallel import AXIS, mean_over
from parity import compile as module
from parity.bench import ROWS
from parity.targets import TARGETS

compiler = pytest.mark.skipif(
    not all(map(module._is_there, TARGETS["h100"].packages)), reason="wants the extra 'aot': compilers for accelerators"
)


def command(*arguments, **environment):
    """`python -m parity compile` in a process of its own, since JAX is told once which platforms it has."""
    keep = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    }
    line = [sys.executable, "-m", "parity", "compile", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env={**keep, **environment})


def figures(*arguments):
    done = command("--json", *arguments)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    return found


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch, capsys):
    from parity.__main__ import main

    monkeypatch.setattr(module, "_is_there", lambda package: False)
    assert main(["compile", "--target", "h100"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "maml-jax[aot]" in said.err


@pytest.mark.parametrize("wrong", [["--rows", "nothing"], ["--devices", "0"], ["--devices", "3", "--tasks", "4"]])
def test_what_does_not_fit_is_refused(wrong, capsys):
    from parity.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(["compile", "--target", "h100", *wrong])
    assert wrong[0] in capsys.readouterr().err


def test_slices_have_room_for_their_chips():
    for devices, name in ((1, "v5e:2x2"), (4, "v5e:2x2"), (8, "v5e:2x4"), (16, "v5e:4x4"), (256, "v5e:16x16")):
        assert TARGETS["tpu_v5e"].describe(devices)["topology_name"] == name
    assert TARGETS["h100"].describe(16)["topology"] == "1x2x8"


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_a_mean_over_devices_is_one_collective(backend):
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.arange(4, dtype=jnp.bfloat16)}}
    stacked = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), tree)
    if backend == "pmap":
        mapped = jax.pmap(lambda tree: mean_over(AXIS, tree), AXIS, devices=jax.devices()[:2])
    else:
        mesh = Mesh(np.asarray(jax.devices()[:2]), (AXIS,))
        one = lambda tree: mean_over(AXIS, jax.tree.map(lambda x: x[0], tree))  # noqa: E731
        mapped = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=P(AXIS), out_specs=P(), check_vma=False))
    assert mapped.lower(stacked).as_text().count("stablehlo.all_reduce") == 1
    result = jax.tree.map(lambda x: x[0], mapped(stacked)) if backend == "pmap" else mapped(stacked)
    jax.tree.map(lambda m, x: np.testing.assert_array_equal(m, 2 * x), result, tree)
    assert jax.tree.map(lambda m: m.dtype, result) == jax.tree.map(lambda x: x.dtype, tree)


def test_a_program_for_devices_that_are_here():
    """All of it but the description of a chip."""
    row = dataclasses.replace(ROWS["convnet4_84_1shot"], side=16, query=1, tasks=2, steps=2)
    here = dataclasses.replace(TARGETS["h100"], platform="tpu")  # which needs no options
    found = module.measure(row, True, here, jax.devices()[:2])
    assert found["collectives"] == 1
    assert found["launches"] > 50
    assert 0 < found["temporary_mib"] < 10
    assert 0 <= found["shuffled_mib"] < found["moved_mib"]
    assert found["reduced_mib"] == pytest.approx(4 * (3 * 9 * 32 + 3 * 9 * 32 * 32 + 3 * 4 * 32 + 32 * 5 + 5) / 2**20)


@compiler
@pytest.mark.slow
def test_a_meta_step_on_one_gpu():
    found = figures("--target", "h100", "--rows", "convnet4_84_1shot")
    assert found["largest_window"] == 3
    assert found["launches"] <= 1100
    assert found["temporary_mib"] <= 660
    assert found["shuffled_mib"] <= 0.1 * found["moved_mib"]
    assert sum(n for call, n in found["calls"].items() if "BackwardFilter" in call) >= 59
    assert found["collectives"] == 0


@compiler
@pytest.mark.slow
def test_a_meta_step_in_half_precision():
    found = figures("--target", "h100", "--rows", "convnet4_84_1shot", "--precision", "bfloat16")
    assert found["largest_window"] == 3
    assert found["launches"] <= 1150
    assert found["temporary_mib"] <= 360
    assert found["shuffled_mib"] <= 0.1 * found["moved_mib"]


@compiler
@pytest.mark.slow
def test_a_deep_encoder():
    found = figures("--target", "h100", "--rows", "resnet12_84", "--tasks", "4")
    assert found["largest_window"] == 3
    assert found["launches"] <= 6000


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 16])
def test_many_gpus_reduce_once(devices):
    found = figures("--target", "h100", "--rows", "convnet4_84_1shot", "--devices", str(devices))
    assert found["tasks"] == devices
    assert found["collectives"] == 1
    assert found["temporary_mib"] <= 170
    assert found["reduced_mib"] < 1
