"""What an audit writes, what it catches, and how it goes on."""

import dataclasses
import json
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import cli, commands, config
from maml_jax.audit import audit, dealing, measures, subject, summary
from maml_jax.audit.subject import Counts
from maml_jax.data.sinusoid import SinusoidTasks
from maml_jax.data.store import ClassStore
from maml_jax.meta.inner import InnerLoop, sgd
from maml_jax.meta.outer import Maml
from maml_jax.nn.norm import Normalization
from tests.audit.toy import (
    COUNTS,
    POOL,
    SHOT,
    STEPS,
    WAY,
    ask,
    descend,
    episode,
    first,
    protocol,
    toy_params,
    toy_subject,
)
from tests.helpers import pixels
from tests.models import tiny_config


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    whole = toy_subject()
    return whole, audit(whole, protocol(whole), {}, folder), folder


def test_what_a_report_holds(report):
    _, made, folder = report
    assert list(made) == list(summary.MEASURES)
    stored = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert stored.keys() == made.keys()
    for name, measure in stored.items():
        assert measure.keys() >= {"value", "ci95", "n_tasks"}, name
    words = (folder / "report.md").read_text()
    assert words.splitlines()[0] == made["headline"]["sentence"]
    for picture in ("overview", "queries", "tasks", "steps", "running", "orders"):
        assert (folder / f"{picture}.png").stat().st_size > 5000
        assert f"({picture}.png)" in words
    sentence = made["headline"]["sentence"]
    assert f"{made['headline']['value']:.1%}".replace("%", " % inductive (± ") in sentence
    assert "from seeing the queries together" in sentence


def test_what_a_report_says_is_true(report):
    """The values again in NumPy, from the tasks."""
    _, made, _ = report
    tasks = [episode(t) for t in range(COUNTS.many)]
    adapted = [descend(task, STEPS) for task in tasks]

    def accuracy(norm, rows, few=COUNTS.rows):
        pairs = zip(adapted[:few], tasks[:few], strict=True)
        return np.array([(ask(p, t, norm, rows).argmax(1) == t.query_y[rows]).mean() for p, t in pairs])

    whole_pool = np.arange(WAY * POOL)
    together, alone = (accuracy(norm, whole_pool) for norm in ("batch", "metabn"))
    gain = made["transductive_gain"]
    np.testing.assert_allclose(gain["value"], (together - alone).mean(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(gain["ci95"], 2.570582 * (together - alone).std(ddof=1) / np.sqrt(6), rtol=1e-5)
    np.testing.assert_allclose(made["headline"]["value"], alone.mean(), rtol=1e-6)
    for size in (1, 2, POOL):
        found = made["query_set_size"]["by_queries"][str(size)]["value"]
        np.testing.assert_allclose(found, accuracy("batch", first(size)).mean(), rtol=1e-6)
    many = accuracy("batch", first(2), COUNTS.many)
    few = made["600_against_6000_tasks"]
    np.testing.assert_allclose(few["value"], many[:6].mean() - many.mean(), atol=1e-6)
    assert few["agree"] == (abs(few["value"]) <= few["few"]["ci95"])
    drawn = dealing.imbalanced(0, COUNTS.rows, WAY, POOL, 0.5)
    even = dealing.imbalanced(0, COUNTS.rows, WAY, POOL, np.inf)
    by = [
        np.mean([(ask(*pair, "batch", r).argmax(1) == pair[1].query_y[r]).mean() for *pair, r in triples])
        for triples in (zip(adapted[:6], tasks[:6], rows, strict=True) for rows in (drawn, even))
    ]
    np.testing.assert_allclose(made["imbalance"]["value"], by[0] - by[1], atol=1e-6)
    untrained = [descend(task, STEPS, start=toy_params(1)) for task in tasks[:6]]
    pairs = zip(untrained, tasks[:6], strict=True)
    random = np.mean([(ask(p, t, "batch", first(2)).argmax(1) == t.query_y[first(2)]).mean() for p, t in pairs])
    np.testing.assert_allclose(made["baselines"]["random_initialisation"]["value"], random, rtol=1e-6)
    worst = made["tail_calibration"]["by_norm"]["metabn"]["tail"]
    np.testing.assert_allclose(worst["worst_5_mean"], alone.min(), rtol=1e-6)
    np.testing.assert_allclose(worst["median"], np.median(alone), rtol=1e-6)
    assert made["leak_certificate"]["passed"]
    assert made["leak_certificate"]["value"] == 0.0
    assert made["leak_certificate"]["by_norm"]["batch"]["changed"] > 0


def test_an_audit_goes_on_where_it_was(report, monkeypatch):
    whole, made, folder = report
    kept = folder / "measures"
    (kept / "label_orders.npz").write_bytes(b"half")
    (kept / "adaptation.json").unlink()
    done = []
    original = measures.EachTask.__call__
    monkeypatch.setattr(measures.EachTask, "__call__", lambda *a, **k: done.append(a[5]) or original(*a, **k))
    again = audit(whole, protocol(whole), {}, folder)
    assert [label.split(", ")[1] for label in done] == ["adaptation", "label orders"]
    assert json.dumps(again, sort_keys=True) == json.dumps(made, sort_keys=True)


def test_what_was_measured_of_another_model_is_not_taken(report, monkeypatch):
    whole, _, folder = report
    monkeypatch.setattr(measures.EachTask, "__call__", lambda *_, **__: pytest.fail("measured"))
    audit(whole, protocol(whole), {}, folder)
    with pytest.raises(pytest.fail.Exception, match="measured"):
        audit(whole, {**protocol(whole), "step": 7}, {}, folder)


def test_a_planted_leak_fails_the_audit(tmp_path):
    whole = toy_subject("leaky", "batch")
    made = audit(whole, protocol(whole), {}, tmp_path)
    assert not made["leak_certificate"]["passed"]
    assert made["leak_certificate"]["value"] > 0
    assert "FAILED" in (tmp_path / "report.md").read_text()


@dataclasses.dataclass(frozen=True)
class Line:
    """y = a x + b."""

    uses_context = False

    def init(self, key, x):
        return {"a": jnp.ones(1), "b": jnp.zeros(1)}, {}

    def start(self, params, stats, support_x, support_y):
        return params, stats

    def apply(self, params, stats, x, phase):
        return params["a"] * x + params["b"], stats

    def loss(self, outputs, y):
        return jnp.square(outputs - y).mean()

    def lasting(self, stats):
        return {}


def test_what_does_not_apply_is_said(tmp_path):
    lines = Maml(Line(), InnerLoop(sgd(0.01)), 1)
    whole = toy_subject(
        methods={"batch": lines},
        transductive={"batch": True},
        params={"a": np.ones(1, np.float32), "b": np.zeros(1, np.float32)},
        tasks=SinusoidTasks(0, "test", 5, 10),
        train_tasks=None,
        way=1,
        classified=False,
        steps=1,
    )
    made = audit(whole, {**protocol(whole), "data": {"name": "sinusoid", "trained_on": "sinusoid"}}, {}, tmp_path)
    assert made["label_order"] == {"value": None, "ci95": None, "n_tasks": 0, "reason": "the tasks have no classes"}
    assert len(made["adaptation"]["by_step"]) == 3
    assert made["headline"]["sentence"].startswith("loss ")
    assert "Does not apply: the tasks have no classes." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("norm", "kind"), [("batch", "inductive"), ("metabn", "transductive")])
def test_a_model_of_one_normalisation(tmp_path, norm, kind):
    """As one that has parameters for each step."""
    whole = toy_subject(norm, train_tasks=None)
    made = audit(whole, protocol(whole), {}, tmp_path)
    assert made["transductive_gain"]["reason"] == f"the model has no {kind} normalisation"
    assert list(made["transductive_gain"]["by_norm"]) == [norm]
    assert made["leak_certificate"]["passed"]
    if norm == "batch":
        assert made["leak_certificate"]["reason"] == "no normalisation is inductive"
    assert "too few" in made["training_split_tasks"]["reason"]
    assert kind in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("batch", ["batch", "metabn"]),
        ("metabn", ["metabn", "batch"]),
        ("tasknorm", ["tasknorm", "batch", "metabn"]),
        ("per_step", ["per_step", "per_step_batch"]),
        ("block1=per_step, batch", ["block1=per_step, batch"]),
    ],
)
def test_normalisations_that_a_model_has_parameters_for(norm, expected):
    own = SimpleNamespace(tested=object())
    methods = subject._methods(tiny_config(model__norm=norm), own)
    assert list(methods) == expected
    assert methods[norm] is own.tested


def test_tasks_of_training_classes_if_there_are_enough():
    config = tiny_config(eval__way=3, eval__query=2)
    few = ClassStore(pixels(0, shape=(6, 16, 16, 1)), np.array([0, 3, 6]), ("a", "b"), "train")
    of = lambda **stores: subject._train_tasks(config, config, SimpleNamespace(stores=stores), 2)  # noqa: E731
    assert of() is None
    assert of(train=few) is None
    config.eval.split = "train"
    assert of(train=few) is None


def test_disjoint_tasks_of_few_images(tmp_path):
    """One task makes no interval; that is told, and nothing is measured."""
    counts = np.array([SHOT + POOL] * WAY)
    store = SimpleNamespace(counts=counts, images=np.zeros((counts.sum(), 1)))
    found = measures._disjoint(toy_subject(query=POOL), None, store, "")
    assert len(found["places"]) == 1
    assert found["used"] == 1


def test_counts():
    assert Counts.of(600, 75, quick=False) == Counts(600, 6000, 134, subject._ORDERED)
    assert 134 * 75 >= 10_000
    assert Counts.of(600, 75, quick=True) == Counts(60, 600, 14, subject._ORDERED // 10)


class Leaky(nn.Module):
    """An encoder that centres by the batch, whatever the normalisation says."""

    norm: Normalization
    width: int = 4

    @nn.compact
    def __call__(self, x, phase):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        return nn.tanh(3 * (x - x.mean(0)))


def test_the_command(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAML_JAX_CACHE", str(cache))
    c = config.default()
    c.data.image_size, c.model.encoder, c.model.width = 16, "tests.audit.test_audit:Leaky", 4
    c.model.norm = "metabn"
    c.task.way, c.task.query, c.inner.steps, c.inner.encoder_rate, c.inner.head_rate = 3, 2, 2, 0.1, 0.1
    c.train.steps, c.train.tasks, c.train.report_every, c.train.validate_every = 2, 2, 2, 2
    c.train.validation_tasks, c.eval.tasks = 4, 8
    commands.train(c, tmp_path)
    command = ["audit", "--workdir", str(tmp_path), "--config.eval.tasks=40", "--quick"]
    capsys.readouterr()
    assert cli.main(command) == 1  # its only inductive normalisation leaks
    said = capsys.readouterr()
    assert "the audit failed" in said.err
    made = json.loads((tmp_path / "audit" / "report.json").read_text(), parse_constant=pytest.fail)
    assert said.out.splitlines()[0] == made["headline"]["sentence"]
    assert list(made["transductive_gain"]["by_norm"]) == ["metabn", "batch"]
    assert made["transductive_gain"]["value"] == 0.0
    assert made["query_set_size"]["n_tasks"] == 4
    assert made["600_against_6000_tasks"]["many"]["n_tasks"] == 40
    assert made["open_interval"]["n_tasks"] == 300  # of 400 that there are images for
    assert made["training_split_tasks"]["n_tasks"] == 4
    whole = made["provenance"]
    assert {split: facts["classes"] for split, facts in whole["splits"].items()} == {
        "train": 900,
        "val": 100,
        "test": 200,
    }
    assert whole["value"] == 0
    assert "audit" in whole["command"] or whole["command"].startswith("maml-jax")
    assert cli.main(command) == 1
    assert "audit 1 of" not in capsys.readouterr().err  # nothing was measured again
    assert cli.main(["evaluate", "--quick"]) == 2
