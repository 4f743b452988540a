"""The audit: its measures against NumPy on a model whose answers are known, what it writes, and what it catches."""

import dataclasses
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import cli, commands, config
from maml_jax.audit import audit, dealing, measures, passes, subject, summary
from maml_jax.audit.subject import Counts, Subject
from maml_jax.data.sampler import ImageTasks, TaskSpec
from maml_jax.data.sinusoid import SinusoidTasks
from maml_jax.data.store import ClassStore
from maml_jax.episode import Episode
from maml_jax.evaluate import EachTask
from maml_jax.meta.inner import InnerLoop, sgd
from maml_jax.meta.learner import Pass
from maml_jax.meta.outer import Maml
from maml_jax.nn.norm import Normalization

WAY, SHOT, POOL, SIZE, STEPS, RATE = 3, 2, 5, 4, 2, 0.7
COUNTS = Counts(rows=6, many=60, leak=4, ordered=5)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A linear classifier of scaled and centred inputs, in plain JAX.

    In `batch` inputs are centred by the batch, in `metabn` queries by the support set; `leaky` is said to be inductive
    and centres by the batch.
    """

    norm: str = "batch"
    zero_head: bool = False

    @property
    def uses_context(self):
        return self.norm == "metabn"

    def init(self, key, x):
        return jax.tree.map(jnp.asarray, toy_params(int(jax.random.key_data(key)[-1]))), {}

    def start(self, params, stats, support_x, support_y):
        del stats, support_y
        if self.zero_head:
            params = {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}
        return params, {"mean": jnp.zeros(support_x.shape[1])}

    def features(self, params, stats, x, phase):
        queried = phase.which is Pass.QUERY
        mean = stats["mean"] if self.norm == "metabn" and queried else x.mean(0)
        if phase.which is Pass.CONTEXT:
            stats = {"mean": mean}
        return (x - mean) * params["encoder"]["scale"], stats

    def apply(self, params, stats, x, phase):
        features, stats = self.features(params, stats, x, phase)
        return features @ params["head"]["kernel"] + params["head"]["bias"], stats

    def loss(self, outputs, y):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    def lasting(self, stats):
        return {}


def toy_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder": {"scale": rng.normal(1, 0.3, SIZE).astype(np.float32)},
        "head": {
            "kernel": rng.normal(0, 0.8, (SIZE, WAY)).astype(np.float32),
            "bias": rng.normal(0, 0.3, WAY).astype(np.float32),
        },
    }


@dataclasses.dataclass(frozen=True)
class Clouds:
    """Tasks of classes that are clouds of points."""

    split: int = 0

    def sample(self, index):
        key = jax.random.fold_in(jax.random.key(self.split), index)
        centre_key, point_key = jax.random.split(key)
        centres = jax.random.normal(centre_key, (WAY, 1, SIZE))
        points = centres + 0.8 * jax.random.normal(point_key, (WAY, SHOT + POOL, SIZE))
        labels = jnp.arange(WAY, dtype=jnp.int32)
        return Episode(
            points[:, :SHOT].reshape(-1, SIZE),
            jnp.repeat(labels, SHOT),
            points[:, SHOT:].reshape(-1, SIZE),
            jnp.repeat(labels, POOL),
        )


def method(norm="batch", **how):
    return Maml(Toy(norm, **how), InnerLoop(sgd(RATE)), STEPS)


def toy_subject(*norms, **changes):
    norms = norms or ("batch", "metabn")
    whole = {
        "methods": {norm: method(norm) for norm in norms},
        "transductive": {norm: norm == "batch" for norm in norms},
        "params": toy_params(),
        "stats": {},
        "fresh": (toy_params(1), {}),
        "steps": STEPS,
        "tasks": Clouds(),
        "train_tasks": Clouds(1),
        "way": WAY,
        "shot": SHOT,
        "query": 2,
        "pool": POOL,
        "classified": True,
        "seed": 0,
        "backend": "shard_map",
        "counts": COUNTS,
    }
    return Subject(**{**whole, **changes})


def each(function, count, *beside, params=None, tasks=None):
    return EachTask(function, at_least=1)(params or toy_params(), {}, tasks or Clouds(), count, beside=beside)


def episode(index):
    return jax.tree.map(np.asarray, Clouds().sample(index))


# The same again in NumPy, with the gradients by hand.


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits(p, x, mean):
    return (x - mean) * p["scale"] @ p["kernel"] + p["bias"]


def descend(task, steps, y=None, adapts=("scale", "kernel", "bias"), start=None):
    start = start or toy_params()
    p = {**start["encoder"], **start["head"]}
    x, y = task.support_x - task.support_x.mean(0), task.support_y if y is None else y
    for _ in range(steps):
        d = (softmax(x * p["scale"] @ p["kernel"] + p["bias"]) - np.eye(WAY)[y]) / len(y)
        gradient = {"scale": (d @ p["kernel"].T * x).sum(0), "kernel": (x * p["scale"]).T @ d, "bias": d.sum(0)}
        p = {name: value - RATE * gradient[name] * (name in adapts) for name, value in p.items()}
    return p


def ask(p, task, norm, rows):
    x = task.query_x[rows]
    return logits(p, x, task.support_x.mean(0) if norm == "metabn" else x.mean(0))


def first(size):
    return [c * POOL + i for c in range(WAY) for i in range(size)]


@pytest.mark.parametrize("norm", ["batch", "metabn"])
def test_query_sets(norm):
    alphas = {"0.5": 0.5, "inf": np.inf}
    drawn = [dealing.imbalanced(0, 6, WAY, POOL, alpha) for alpha in alphas.values()]
    found = each(passes.rows(method(norm), STEPS, WAY, (1, 2, POOL), tuple(alphas)), 6, *drawn)
    for t in range(6):
        task = episode(t)
        p = descend(task, STEPS)
        for size in (1, 2, POOL):
            np.testing.assert_array_equal(found[f"predictions_{size}"][t], ask(p, task, norm, first(size)).argmax(1))
        for name, rows in zip(alphas, drawn, strict=True):
            np.testing.assert_array_equal(found[f"imbalanced_{name}"][t], ask(p, task, norm, rows[t]).argmax(1))
        probabilities = softmax(ask(p, task, norm, np.arange(WAY * POOL)))
        np.testing.assert_allclose(found["confidence"][t], probabilities.max(1), rtol=1e-4)
        true = probabilities[np.arange(WAY * POOL), task.query_y]
        np.testing.assert_allclose(found["nll"][t], -np.log(true), rtol=1e-3, atol=1e-5)


def test_protocol_and_nearest_neighbour():
    found = each(passes.protocol(method(), STEPS, WAY, 2), 5)
    for t in range(5):
        task = episode(t)
        outputs = ask(descend(task, STEPS), task, "batch", first(2))
        y = task.query_y[first(2)]
        np.testing.assert_array_equal(found["predictions"][t], outputs.argmax(1))
        np.testing.assert_allclose(found["losses"][t], -np.log(softmax(outputs)[range(len(y)), y]).mean(), rtol=1e-4)
        distance = np.linalg.norm(task.query_x[first(2)][:, None] - task.support_x[None], axis=-1)
        np.testing.assert_array_equal(found["nearest"][t], task.support_y[distance.argmin(1)])


@pytest.mark.parametrize(("norm", "leaks"), [("batch", True), ("metabn", False), ("leaky", True)])
def test_leaks(norm, leaks):
    """A query's answer is asked for among two sets of others; a leak that was planted is seen."""
    one, two = dealing.others(0, 8, WAY * POOL)
    found = each(passes.leaks(method(norm), STEPS), 8, one, two)
    assert found["changed"].shape == (8, WAY * POOL)
    assert found["changed"].any() == leaks
    assert (found["moved"] > 0).all() == leaks
    if not leaks:
        assert not found["moved"].any()
    for t, query in itertools.product(range(3), range(WAY * POOL)):
        task = episode(t)
        p = descend(task, STEPS)
        a, b = (ask(p, task, norm, [query, *rows[t, query]])[0] for rows in (one, two))
        assert found["changed"][t, query] == (a.argmax() != b.argmax())
        np.testing.assert_allclose(found["moved"][t, query], np.abs(a - b).max(), rtol=1e-3, atol=1e-5)


def test_label_orders():
    orders = dealing.orders(0, WAY)
    found = each(passes.label_orders(method(), STEPS, orders), 3)["accuracies"]
    assert found.shape == (3, 6)
    for t, (i, order) in itertools.product(range(3), enumerate(orders)):
        task = episode(t)
        outputs = ask(descend(task, STEPS, y=order[task.support_y]), task, "batch", np.arange(WAY * POOL))
        np.testing.assert_allclose(found[t, i], (outputs.argmax(1) == order[task.query_y]).mean(), rtol=1e-6)
    assert found.std(1).max() > 0
    made = summary.label_order({"accuracies": found, "orders": orders})
    np.testing.assert_allclose(made["value"], found.std(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(made["best"]["value"], found.max(1).mean(), rtol=1e-6)
    assert made["all_orders"]


def test_the_order_of_labels_makes_no_difference_to_a_head_of_zeros():
    orders = dealing.orders(0, WAY)
    found = each(passes.label_orders(method(zero_head=True), STEPS, orders), 20)["accuracies"]
    assert summary.label_order({"accuracies": found, "orders": orders})["value"] == 0.0


def test_adaptation():
    found = each(passes.adaptation(method(), STEPS, WAY, POOL), 4)
    assert found["accuracies"].shape == (4, 2 * STEPS + 1)
    everything = np.arange(WAY * POOL)
    right = lambda p, task: (ask(p, task, "batch", everything).argmax(1) == task.query_y).mean()  # noqa: E731
    for t in range(4):
        task = episode(t)
        for k in range(2 * STEPS + 1):
            p = descend(task, k)
            np.testing.assert_allclose(found["accuracies"][t, k], right(p, task), rtol=1e-6)
            probabilities = softmax(ask(p, task, "batch", everything))[everything, task.query_y]
            np.testing.assert_allclose(found["losses"][t, k], -np.log(probabilities).mean(), rtol=1e-3)
        head, body = (descend(task, STEPS, adapts=which) for which in (("kernel", "bias"), ("scale",)))
        np.testing.assert_allclose(found["head_only"][t], right(head, task), rtol=1e-6)
        np.testing.assert_allclose(found["body_only"][t], right(body, task), rtol=1e-6)
        for name, steps in (("before", 0), ("after", STEPS)):
            scale = descend(task, steps)["scale"]
            support = (task.support_x - task.support_x.mean(0)) * scale
            query = (task.query_x - task.query_x.mean(0)) * scale
            means = np.stack([support[task.support_y == c].mean(0) for c in range(WAY)])
            nearest = np.linalg.norm(query[:, None] - means, axis=-1).argmin(1)
            np.testing.assert_allclose(found[f"means_{name}"][t], (nearest == task.query_y).mean(), rtol=1e-6)


def test_imbalanced_query_sets():
    for alpha in (0.5, 2.0, np.inf):
        rows = dealing.imbalanced(3, 200, 5, 15, alpha)
        assert rows.shape == (200, 15)
        assert all(len(set(row)) == 15 for row in rows)
        assert rows.min() >= 0
        assert rows.max() < 75
        counts = np.stack([np.bincount(row // 15, minlength=5) for row in rows])
        if np.isinf(alpha):
            assert (counts == 3).all()
        else:  # of Dirichlet shares: variance (w - 1) / (w² (wα + 1)), and what rounding adds
            expected = 15**2 * 4 / (25 * (5 * alpha + 1))
            assert abs(counts.var() - expected) < 0.15 * expected + 0.2


def test_others_never_meet():
    one, two = dealing.others(0, 3, 40)
    for t, query in itertools.product(range(3), range(40)):
        company = [*one[t, query], *two[t, query]]
        assert len({query, *company}) == 19
        assert 0 <= min(company) <= max(company) < 40
    assert dealing.others(0, 1, 6)[0].shape == (1, 6, 2)


def test_label_orders_that_are_taken():
    assert len({tuple(order) for order in dealing.orders(0, 5)}) == 120
    many = dealing.orders(0, 20)
    assert many.shape == (24, 20)
    assert (np.sort(many) == np.arange(20)).all()
    assert (many[0] == np.arange(20)).all()


@pytest.mark.parametrize("counts", [[20] * 12, [7, 30, 12, 5, 50, 9], [3, 3]])
def test_disjoint_tasks(counts):
    places = dealing.disjoint(0, np.array(counts), 3, 4, 100)
    assert len(set(places.ravel())) == places.size  # no image twice
    offsets = np.concatenate([[0], np.cumsum(counts)])
    of = np.searchsorted(offsets, places, side="right") - 1
    assert (of == of[..., :1]).all()
    assert all(len(set(row)) == 3 for row in of[..., 0])
    left = np.array(counts) - np.bincount(of.ravel(), minlength=len(counts))
    assert (left >= 4).sum() < 3  # until classes run out
    assert len(dealing.disjoint(0, np.array(counts), 3, 4, 1)) <= 1


def test_the_disjoint_tasks_that_are_fed_are_those_that_were_dealt():
    rng = np.random.default_rng(0)
    store = ClassStore(rng.integers(0, 256, (40, 2, 2, 1), np.uint8), np.arange(5) * 10, tuple("abcd"), "test")
    spec = TaskSpec(0, "test", 3, 1, 4)
    places = dealing.disjoint(0, store.counts, 3, 3, 100)  # two queries
    seen = lambda params, stats, e: {"support": e.support_x, "query": e.query_x, "y": e.query_y}  # noqa: E731
    run = EachTask(seen, at_least=1)
    tasks = ImageTasks(spec, store.images, store.offsets)
    feed = measures._Dealt(tasks.spec, store, places, run.per_call)
    found = run({}, {}, feed, len(places))
    images = store.images[places] / np.float32(255)
    np.testing.assert_allclose(found["support"], images[:, :, 0], rtol=1e-6)
    np.testing.assert_allclose(found["query"].reshape(len(places), 3, 2, 2, 2, 1), images[:, :, 1:], rtol=1e-6)
    np.testing.assert_array_equal(found["y"][0], [0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    whole = toy_subject()
    return whole, audit(whole, protocol(whole), {}, folder), folder


def protocol(whole):
    facts = {"way": WAY, "shot": SHOT, "norm": whole.own, "pool": whole.pool, "split": "test", "inner_steps": STEPS}
    run = {"step": 0, "checkpoint": "best", "parameters_sha256": "0" * 64}
    around = {"versions": {"jax": "1"}, "device": {"kind": "cpu", "count": 1}}
    return {**facts, **run, **around, "data": {"name": "glyphs", "trained_on": "glyphs"}}


def test_what_a_report_holds(report):
    _, made, folder = report
    assert list(made) == list(summary.MEASURES)
    stored = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert stored.keys() == made.keys()
    for name, measure in stored.items():
        assert measure.keys() >= {"value", "ci95", "n_tasks"}, name
    words = (folder / "report.md").read_text()
    assert words.splitlines()[0] == made["headline"]["sentence"]
    for picture in ("queries", "tasks", "steps", "running", "orders"):
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
    done.clear()
    audit(whole, {**protocol(whole), "step": 7}, {}, folder)  # another model: all of it anew
    assert len(done) == len(measures.measurements(whole, None))


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
    c.data.image_size, c.model.encoder, c.model.width = 16, "tests.test_audit:Leaky", 4
    c.model.norm = "metabn"
    c.task.query, c.inner.steps, c.inner.encoder_rate, c.inner.head_rate = 2, 2, 0.1, 0.1
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
    assert made["open_interval"]["n_tasks"] == 200 // 5  # of 20 images each class gives 3 to a task, six times
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
