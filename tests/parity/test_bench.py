"""The benchmark's sides take their turns, and compute what they say; how fast is no matter of tests."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maml_jax.meta.learner import Pass, Phase
from maml_jax.nn.classifier import Classifier
from maml_jax.nn.encoders import encoder
from maml_jax.nn.head import LinearHead
from maml_jax.nn.kernels.conv import conv_same
from maml_jax.nn.model import learner
from parity import bench, jax_sides, reference, sides, torch_sides
from parity.__main__ import _bench_lines, main
from parity.bench import ROWS, Row
from parity.turns import images

TINY = Row(side=16, query=1, tasks=2, steps=1, turn=1, width=4)


def all_sides():
    """Every row's sides, on shrunken shapes; those that are the same then once."""
    found = {}
    for row in ROWS.values():
        side = 22 if row.encoder.endswith("ConvNet3") else TINY.side  # of which a pixel is left
        kept = {f: getattr(row, f) for f in ("encoder", "channels", "shot", "first_order", "frozen")}
        tiny = dataclasses.replace(TINY, side=side, **kept)
        title = "-".join(str(value).rpartition(":")[-1] for value in kept.values())
        found |= {f"{title}-{name}": (tiny, name) for name in (row.ours, *row.against)}
    return found


def test_every_side_stands_in_a_row_and_is_of_a_name_that_there_is():
    assert {side for row in ROWS.values() for side in (row.ours, *row.against)} == sides.SIDES.keys()
    assert jax_sides.CLIP == reference.CLIP
    assert all(bench.from_json(bench.to_json(row)) == row for row in ROWS.values())


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, of its compiler's
@pytest.mark.parametrize(("row", "name"), all_sides().values(), ids=all_sides())
def test_a_side_takes_its_turns(row, name, monkeypatch):
    if row != TINY:  # for which alone C++ is compiled, in minutes
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    side = sides.SIDES[name](row)
    side.turn()
    side.turn()
    assert side.peak_mib() > 0
    assert side.devices in (1, 2, len(jax.devices()))


@pytest.mark.slow
def test_pieces_save_temporary_memory():
    row = dataclasses.replace(TINY, side=84, width=32, query=15, tasks=1)
    whole, pieces = (sides.SIDES[name](row) for name in ("ours", "pieces"))
    assert pieces.temporary_mib < 0.4 * whole.temporary_mib


# torch.func


def problem(row):
    """The reference's and torch.func's model of the same parameters, and episodes; in float64."""
    spec = reference.ModelSpec(row.encoder, row.way, row.side, channels=row.channels, width=row.width)
    inner = reference.InnerSpec(row.steps, first_order=row.first_order, frozen=("bn",) if row.frozen else ())
    torch.manual_seed(0)
    net = torch_sides.network(row).double()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)  # away from unit scales and zero shifts
    names = reference.init_params(spec, torch.Generator())  # both are in the order of the layers
    params = {name: p.detach().clone() for name, p in zip(names, net.parameters(), strict=True)}
    episodes = reference.Episodes(*(torch.as_tensor(a) for a in images(row, channels_first=True)))
    episodes = episodes._replace(support_x=episodes.support_x.double(), query_x=episodes.query_x.double())
    return spec, inner, params, net, episodes


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("how", [{}, {"frozen": False}, {"first_order": True}], ids=str)
def test_torch_func_has_the_references_meta_gradient(how):
    row = dataclasses.replace(TINY, steps=2, query=2, **how)
    spec, inner, params, net, episodes = problem(row)
    expected = reference.meta_gradient(spec, inner, params, {}, episodes).grads.values()
    scale = max(g.abs().max() for g in expected)
    gradient, own = torch_sides.task_gradient(row, net), dict(net.named_parameters())
    for meta_gradient in (torch_sides.one_by_one, torch_sides.side_by_side):
        found = meta_gradient(gradient, {name: p.detach() for name, p in own.items()}, episodes)
        off = [(found[name] - g).abs().max() for name, g in zip(own, expected, strict=True)]
        assert max(off) <= 1e-9 * scale


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("frozen", [False, True])
def test_torch_func_has_the_references_answers_at_test(frozen):
    row = dataclasses.replace(TINY, steps=2, query=2, frozen=frozen)
    spec, inner, params, net, episodes = problem(row)
    expected = reference.evaluate(spec, inner, params, {}, episodes)
    answer, own = torch_sides.task_logits(row, net), {name: p.detach() for name, p in net.named_parameters()}
    for i, task in enumerate(zip(*episodes[:3], strict=True)):
        torch.testing.assert_close(answer(own, *task), expected[i], rtol=0, atol=1e-9)
    at_once = torch.vmap(answer, in_dims=(None, 0, 0, 0))(own, *episodes[:3])
    torch.testing.assert_close(at_once, expected, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
def test_torch_func_takes_the_references_steps(monkeypatch):
    monkeypatch.setattr(reference, "CLIP", 1e-2)  # so that there is something to clip
    spec, inner, params, net, episodes = problem(TINY)
    before = [p.detach().clone() for p in net.parameters()]
    adam, own = torch.optim.Adam(params.values(), lr=1e-3), torch.optim.Adam(net.parameters(), lr=1e-3)
    meta_gradient = functools.partial(torch_sides.one_by_one, torch_sides.task_gradient(TINY, net))
    for _ in range(2):
        reference.outer_step(spec, inner, adam, params, {}, episodes)
        torch_sides.meta_step(net, own, meta_gradient, episodes)
    for new, expected in zip(net.parameters(), params.values(), strict=True):
        torch.testing.assert_close(new.detach(), expected, rtol=0, atol=1e-9)
    assert max((new - old).abs().max() for old, new in zip(before, net.parameters(), strict=True)) > 1e-3


def test_what_does_not_compile_or_is_not_written_is_said_in_a_line(monkeypatch):
    def broken(function, **_):
        def fail(*_):
            raise RuntimeError("\n  no C++ compiler \nand a trace")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        bench.UnavailableError, match=r"^torch.compile fails with RuntimeError: no C\+\+ compiler and a trace$"
    ):
        sides.SIDES["torch_compiled"](TINY)
    with pytest.raises(bench.UnavailableError, match="resnet12"):
        sides.SIDES["torch_func"](dataclasses.replace(TINY, encoder="resnet12"))


# Networks


@pytest.mark.usefixtures("one_thread")
def test_functorchs_network_is_the_same_in_flax():
    row = dataclasses.replace(ROWS["functorch_omniglot"], side=22, width=8)
    torch.manual_seed(0)
    net = torch_sides.network(row)
    x = np.random.default_rng(0).random((4, 22, 22, 1), np.float32)
    model = learner(Classifier(encoder(row.encoder, row.width), LinearHead(row.way)))
    params, stats = model.init(jax.random.key(0), x)
    *blocks, head = [m for m in net if list(m.parameters())]
    with torch.no_grad():
        for i, (conv, norm) in enumerate(zip(blocks[::2], blocks[1::2], strict=True), start=1):
            norm.weight.uniform_(-1, 1)
            params["encoder"][f"block{i}"] = {
                "conv": {"kernel": conv.weight.numpy().transpose(2, 3, 1, 0), "bias": conv.bias.numpy()},
                "norm": {"scale": norm.weight.numpy(), "bias": norm.bias.numpy()},
            }
        params["head"] = {"kernel": head.weight.numpy().T, "bias": head.bias.numpy()}
        expected = net(torch.as_tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(model.apply(params, stats, x, Phase(Pass.QUERY))[0], expected, atol=1e-5)


def test_without_the_winograd_form_no_derivative_takes_it():
    x, kernel = jnp.ones((1, 8, 8, 64)), jnp.ones((3, 3, 64, 64))

    def convolutions(winograd):
        once = lambda x, k: jnp.sum(conv_same(x, k, winograd=winograd) ** 2)  # noqa: E731
        twice = lambda x, k: sum(jnp.sum(g**2) for g in jax.grad(once, (0, 1))(x, k))  # noqa: E731
        return jax.jit(jax.grad(twice, (0, 1))).lower(x, kernel).as_text().count("stablehlo.convolution")

    assert convolutions(True) == 0
    assert convolutions(False) > 0


# What is reported


class Worker:
    """Takes turns of so many seconds each, in place of a process."""

    def __init__(self, seconds):
        self._seconds = iter(seconds)

    def turn(self):
        return next(self._seconds)

    def finish(self):
        return {"peak_mib": 7.0, "temporary_mib": None}


def test_ours_is_held_against_the_fastest():
    row = dataclasses.replace(TINY, turn=2)
    workers = {"ours": Worker([2, 9, 1]), "reference": Worker([8, 8, 8]), "torch_func": Worker([6, 3, 6])}
    measured = bench._take_turns(row, workers, 3)
    result = bench._summary("tiny", row, measured, {"torch_compiled": "no compiler"})
    assert result == {
        "name": "tiny",
        "ours_seconds": 1.0,
        "reference_seconds": 3.0,
        "speedup": 3.0,
        "ours_peak_mib": 7.0,
        "reference_peak_mib": 7.0,
        "ours_temporary_mib": None,
        "fastest": "torch_func",
        "others": {"reference": 4.0, "torch_func": 3.0},
        "unavailable": {"torch_compiled": "no compiler"},
    }
    first, second, third = _bench_lines(result)
    assert first.split() == ["tiny", "1.000s", "3.000s", "3.00x", "7", "7", "torch_func"]
    assert second.split() == ["4.000s", "4.00x", "reference,", "1.33", "times", "torch_func's"]
    assert third.strip() == "torch_compiled not measured: no compiler"


def test_the_list_has_a_line_for_every_row(capsys):
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ROWS)
    assert "28 px, 5-way 5-shot, 15 queries, 32 tasks, 5 steps" in next(x for x in lines if "functorch" in x)


@pytest.mark.slow
def test_a_row_is_measured_in_processes_of_its_own(monkeypatch, capsys):
    tiny = dataclasses.replace(TINY, against=("reference", "torch_func"))
    resnet = dataclasses.replace(TINY, encoder="resnet12", against=("torch_func", "reference"))
    monkeypatch.setattr(bench, "ROWS", {"tiny": tiny, "resnet": resnet})
    assert main(["bench", "--rows", "tiny,resnet", "--repeats", "1", "--json"]) == 0
    found, other = json.loads(capsys.readouterr().out)
    assert found["speedup"] == pytest.approx(found["reference_seconds"] / found["ours_seconds"])
    assert found["reference_seconds"] == min(found["others"].values())
    assert found["others"].keys() == {"reference", "torch_func"}
    assert min(found["ours_peak_mib"], found["reference_peak_mib"], found["ours_temporary_mib"]) > 0
    assert other["others"].keys() == {"reference"}
    assert "torch_func" in other["unavailable"]
