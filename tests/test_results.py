"""What evaluations leave behind: side by side, with what they belong to; and models tested on other data."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from maml_jax import commands, config, data, results
from maml_jax.config.transfer import for_data, trained_channels
from maml_jax.data.stream import drawn_classes
from maml_jax.evaluate import Evaluation, Evaluator
from maml_jax.experiment import Experiment
from maml_jax.experiment.method import build_method
from maml_jax.nn.norm import Normalization
from maml_jax.tree import by_name
from tests.helpers import image_tasks


class Flat(nn.Module):
    """An encoder that is compiled in no time."""

    norm: Normalization
    width: int = 3

    @nn.compact
    def __call__(self, x, phase):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        return nn.tanh(self.norm.layer(("encoder", "norm"))(x[:, None, None], phase)[:, 0, 0])


@pytest.fixture
def settings(cache):
    c = config.default()
    c.data.cache_dir = str(cache)
    c.data.image_size = 16
    c.model.encoder, c.model.width = "tests.test_results:Flat", 3
    c.task.query, c.inner.steps = 2, 1
    c.train.steps, c.train.tasks, c.train.report_every = 4, 2, 2
    c.train.validate_every, c.train.validation_tasks, c.train.checkpoint_every = 2, 5, 2
    c.eval.tasks = 12
    return c


@pytest.fixture
def experiment(settings):
    return Experiment.of(settings, data.open_stores(data_settings(settings), progress=False))


def data_settings(settings):
    from maml_jax.experiment import stored_data

    return stored_data(settings)


def outcome_of(experiment):
    state = experiment.fresh_state()
    t = experiment.testing
    return Evaluator(experiment, t.split)(state.params, state.stats, t.tasks)


def test_tail():
    values = np.random.default_rng(0).random(200)
    found = results.tail(values)
    assert found["median"] == pytest.approx(np.median(values))
    for level, share in (("1", 0.01), ("5", 0.05), ("25", 0.25)):
        assert found[f"quantile_{level}"] == pytest.approx(np.quantile(values, share))
    assert found["worst_5_mean"] == pytest.approx(np.sort(values)[:10].mean())
    losses = results.tail(values, best=min)  # the worst are the largest
    assert losses["quantile_5"] == pytest.approx(np.quantile(values, 0.95))
    assert losses["worst_5_mean"] == pytest.approx(np.sort(values)[-10:].mean())
    assert results.tail(np.array([0.5, 0.25]))["worst_5_mean"] == 0.25


def test_by_class():
    classes = np.array([[2, 0], [0, 3]])
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    predictions = np.array([[0, 1, 1, 1], [1, 1, 1, 0]])
    found = results.by_class(classes, labels, predictions, ("a", "b", "c", "d"))
    assert found == {
        "a": {"accuracy": 0.5, "queries": 4, "tasks": 2},
        "c": {"accuracy": 0.5, "queries": 2, "tasks": 1},
        "d": {"accuracy": 0.5, "queries": 2, "tasks": 1},
    }


def test_the_classes_of_tasks_are_those_that_their_images_are_of():
    tasks = image_tasks(way=3)
    classes = drawn_classes(tasks, 5)
    for index in range(5):
        query = np.asarray(tasks.sample(np.int32(index)).query_x)
        for label, c in enumerate(classes[index]):
            of_class = tasks.pixels[8 * c : 8 * (c + 1)] / np.float32(255)
            for image in query[2 * label : 2 * label + 2]:
                assert any(np.allclose(image, one) for one in of_class)


def test_what_is_written(experiment, tmp_path):
    outcome = outcome_of(experiment)
    path = results.write(tmp_path, experiment, outcome, 7)
    assert path == tmp_path / "eval" / "test-5w1s-2q-1steps-batch-best-12.json"
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    tasks = np.load(path.with_suffix(".npz"))
    assert tasks["classes"].shape == (12, 5)
    assert tasks["labels"].shape == tasks["predictions"].shape == (12, 10)
    right = tasks["labels"] == tasks["predictions"]
    np.testing.assert_allclose(right.mean(1), tasks["accuracies"], rtol=1e-6)
    names = tasks["class_names"]
    of = np.take_along_axis(tasks["classes"], tasks["labels"], 1)
    for name, found in report["by_class"].items():
        assert found["accuracy"] == pytest.approx(right[names[of] == name].mean())
    assert report["median"] == pytest.approx(np.median(tasks["accuracies"]))
    assert report["protocol"]["step"] == 7
    assert report["versions"].keys() >= {"maml-jax", "jax", "numpy"}
    assert report["device"]["kind"] == jax.devices()[0].device_kind
    assert report["data"]["sha256"] == experiment.stores["test"].sha256
    assert len(report["data"]["sha256"]) == 64
    assert (tmp_path / "eval.json").read_bytes() == path.read_bytes()
    assert (tmp_path / "eval_tasks.npz").read_bytes() == path.with_suffix(".npz").read_bytes()


def test_no_result_overwrites_another(experiment, tmp_path):
    outcome = outcome_of(experiment)
    write = lambda e, o, step: results.write(tmp_path, e, o, step).stem  # noqa: E731
    name = write(experiment, outcome, 4)
    before = {p.name: p.read_bytes() for p in (tmp_path / "eval").iterdir()}
    assert write(experiment, outcome_of(experiment), 4) == name  # the same bits
    assert write(experiment, outcome, 5) == f"{name}-2"
    other = dataclasses.replace(outcome, losses=outcome.losses + 1)
    assert write(experiment, other, 4) == f"{name}-3"
    assert write(experiment, outcome, 5) == f"{name}-2"
    assert {n: (tmp_path / "eval" / n).read_bytes() for n in before} == before
    assert len(list((tmp_path / "eval").glob("*.json"))) == 3
    assert json.loads((tmp_path / "eval.json").read_text())["protocol"]["step"] == 5  # the latest


def test_figures_that_are_not_finite_are_null(experiment, tmp_path):
    outcome = outcome_of(experiment)
    broken = dataclasses.replace(outcome, losses=np.full(12, np.nan, np.float32))
    report = json.loads(results.write(tmp_path, experiment, broken, 1).read_text(), parse_constant=pytest.fail)
    assert report["loss"] is None


def test_predictions_after_each_step_are_of_the_last(settings):
    settings.eval.by_step = True
    settings.eval.steps = 3
    e = Experiment.of(settings, data.open_stores(data_settings(settings), progress=False), training=False)
    outcome = outcome_of(e)
    right = (outcome.labels == outcome.predictions).mean(1)
    np.testing.assert_allclose(right, outcome.accuracies_by_step[:, -1], rtol=1e-6)
    assert "predictions_by_step" not in {f.name for f in dataclasses.fields(Evaluation)}


def folder_of_colour(folder, classes=12):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(classes):
            place = folder / split / f"{split}{c:02}"
            place.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(place / f"{i}.png")


def test_a_model_is_tested_on_other_data_as_it_was_trained(settings, tmp_path, monkeypatch):
    """Grey characters trained on, colour pictures tested on: size and channels are the model's, the place is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAML_JAX_CACHE", settings.data.cache_dir)
    settings.data.dir = "where/the/trained/ones/are"
    workdir = tmp_path / "run"
    commands.train(settings, workdir)
    folder_of_colour(tmp_path / "datasets" / "folder")
    changed = config.load(workdir / "config.json")
    changed.data.name = "folder"
    commands.evaluate(changed, workdir)
    (path,) = (workdir / "eval").glob("folder-*.json")
    report = json.loads(path.read_text())
    assert report["data"]["name"] == "folder"
    assert report["data"]["trained_on"] == "glyphs"
    assert (report["data"]["channels"], report["data"]["image_size"]) == (1, 16)
    assert set(report["by_class"]) <= {f"test{c:02}" for c in range(12)}
    assert len(list((workdir / "eval").glob("*.json"))) == 2


def test_what_stays_with_another_data_set(settings):
    from maml_jax.experiment.tasks import normalization

    trained = settings.copy_and_resolve_references()
    trained.data.name, trained.data.normalize, trained.data.channels = "cifar_fs", "dataset", "3"
    trained.data.dir, trained.data.split_seed = "there", 3
    tested = trained.copy_and_resolve_references()
    assert for_data(tested, trained, {}) is tested
    tested.data.name = "folder"
    changed = for_data(tested, trained, {})
    assert (changed.data.dir, changed.data.split_seed, changed.data.channels) == ("", 0, "3")
    tested.data.dir = "mine"
    assert for_data(tested, trained, {}).data.dir == "mine"
    assert normalization(changed, trained) == data.data_set("cifar_fs").statistics
    changed.data.normalize = "imagenet"
    assert normalization(changed, trained) == data.IMAGENET_STATISTICS


def test_files_are_named_after_what_differs_at_test(experiment):
    of = lambda **facts: dataclasses.replace(  # noqa: E731
        experiment, testing=experiment.testing._replace(facts={**experiment.testing.facts, **facts})
    )
    name = results.name_of(experiment)
    assert results.name_of(of(head="zero")) == f"{name}-head_zero"
    assert results.name_of(of(rate_factor=0.5)) == f"{name}-rates_x0.5"
    assert results.name_of(of(head="zero", rate_factor=2.0)) == f"{name}-head_zero-rates_x2"


def test_channels_that_only_the_weights_tell(settings):
    trained = settings.copy_and_resolve_references()
    trained.data.channels = "3"
    assert trained_channels(trained, {}) == "3"
    trained.data.channels = "auto"
    assert trained_channels(trained, {}) == "auto"
    for channels in (1, 3):
        images = np.zeros((1, trained.data.image_size, trained.data.image_size, channels), np.float32)
        params, _ = build_method(trained, trained.task.way).learner.init(jax.random.key(0), images)
        assert trained_channels(trained, by_name(params)) == str(channels)
