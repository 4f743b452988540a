"""From a configuration to values: what is built of it, and what is refused."""

import jax
import numpy as np
import pytest

from maml_jax import data
from maml_jax.config import preset
from maml_jax.data.sampler import ImageTasks
from maml_jax.data.sinusoid import SinusoidTasks
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import HostTasks
from maml_jax.errors import ConfigError, DataError
from maml_jax.evaluate import Evaluator
from maml_jax.experiment import Experiment
from maml_jax.experiment.method import build_outer, build_schedule
from maml_jax.train import train
from tests.helpers import one_task


def config_of(name="default", **changes):
    config = preset(name)
    config.update_from_flattened_dict({field.replace("__", "."): value for field, value in changes.items()})
    return config


@pytest.fixture
def config():
    return config_of(model__width=2, model__options="blocks=1", task__way=2, task__query=2, eval__tasks=5)


def store(split, channels=1):
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28, channels), np.uint8)
    return ClassStore(images, np.arange(0, 25, 8), ("a", "b", "c"), split)


@pytest.fixture(scope="module")
def stores():
    return {split: store(split) for split in ("train", "val", "test")}


def test_what_is_built(config, stores):
    """Tasks by split, each drawn in its way: of training with its augmentation, the others without."""
    config.data.rotations, config.data.support_augment, config.eval.shot = True, "flip", 3
    of = Experiment.of(config, stores)
    assert of.eval_tasks.keys() == {"val", "test"}
    assert isinstance(of.tasks, ImageTasks)
    train, test = of.tasks.spec, of.eval_tasks["test"].spec
    assert (train.split, train.shot, train.rotations, train.support_augment) == ("train", 1, True, "flip")
    assert (test.split, test.shot, test.rotations, test.support_augment) == ("test", 3, False, "none")
    assert of.method.learner == of.tested.learner
    assert of.training.tasks == 4
    assert of.training.tasks_at_once == 1
    assert len(of.devices) == 4
    assert of.testing.facts["shot"] == 3
    assert of.testing.facts["transductive"] is True
    state = of.fresh_state()
    assert state.params["head"]["kernel"].shape[1] == 2
    assert state.params["encoder"].keys() == {"block1"}


def test_an_evaluation_needs_no_data_to_train_on(config, stores):
    of = Experiment.of(config, {"test": stores["test"]}, training=False)
    assert of.tasks is None
    assert of.eval_tasks.keys() == {"test"}
    assert of.fresh_state().params["head"]["kernel"].shape[1] == 2


def test_a_test_on_the_training_split_is_no_training(config, stores):
    """The same classes, drawn as at test."""
    config.eval.split, config.data.rotations = "train", True
    of = Experiment.of(config, stores)
    assert of.tasks.spec.rotations
    assert not of.eval_tasks["train"].spec.rotations


def test_another_number_of_ways_at_test(config, stores):
    config.eval.way, config.model.head = 3, "zero"
    of = Experiment.of(config, stores)
    assert of.method.learner.module.head.way == 2
    assert of.tested.learner.module.head.way == 3


@pytest.mark.parametrize(("head", "way"), [("shared", 3), ("prototypes", 3), ("zero", 3), ("meta", 2)])
def test_a_learned_head_starts_elsewhere_at_test(config, stores, head, way):
    """Its parameters are those of training, whatever the test makes of them."""
    config.eval.head, config.eval.way = head, way
    of = Experiment.of(config, stores)
    state = of.fresh_state()
    assert state.params["head"]["kernel"].shape[1] == 2
    result = Evaluator(of, "test")(state.params, state.stats, 3)
    assert result.labels.max() == way - 1


def test_rates_at_test_are_those_of_training_times_a_factor(config, stores):
    """Learned ones, too."""
    config.inner.learn_rates, config.eval.rate_factor = "group", 3.0
    of, task = Experiment.of(config, stores), one_task(side=28, channels=1)
    state = of.fresh_state()

    def moved(method):
        after, _, _ = method.adapted(state.params, state.stats, task.support_x, task.support_y, 1)
        return after["head"]["bias"] - state.params["head"]["bias"]

    assert np.any(moved(of.method))
    np.testing.assert_allclose(moved(of.tested), 3 * moved(of.method), rtol=1e-5)


def test_images_on_the_host(config, stores):
    config.data.placement = "host"
    of = Experiment.of(config, stores)
    assert all(isinstance(tasks, HostTasks) for tasks in (of.tasks, *of.eval_tasks.values()))
    assert of.fresh_state().params["head"]["kernel"].shape[1] == 2


FEW = r"eval\.way=9, but the test split has only 3 classes"


@pytest.mark.parametrize(
    ("change", "error", "message", "settings"),
    [
        ({"task.way": 9}, ConfigError, FEW, {"eval.way": 3, "task.way": 3}),
        ({"eval.way": 9, "model.head": "zero"}, ConfigError, FEW, {"eval.way": 3}),
        ({"task.query": 9}, ConfigError, r"eval\.query=9 take 10 images", {"eval.query": 7}),
        ({"data.normalize": "imagenet"}, DataError, r"of 3 channels, but .* have 1", {"data.normalize": "none"}),
        ({"data.normalize": "dataset"}, ConfigError, r"no statistics are in use", {"data.normalize": "none"}),
        ({"parallel.devices": 3}, ConfigError, r"does not divide train\.tasks=4", {"parallel.devices": 0}),
    ],
)
def test_what_does_not_fit_is_refused(config, stores, change, error, message, settings):
    config.update_from_flattened_dict(change)
    with pytest.raises(error, match=message) as raised:
        Experiment.of(config, stores)
    assert raised.value.settings == settings


def test_a_split_that_is_not_there_is_refused(config, stores):
    with pytest.raises(DataError, match=r"has no 'val' split; it has train, test"):
        Experiment.of(config, {split: stores[split] for split in ("train", "test")})
    config.train.validate_every = 0
    assert Experiment.of(config, {split: stores[split] for split in ("train", "test")}).eval_tasks.keys() == {"test"}


def test_statistics_of_a_data_set(config):
    config.data.name, config.data.normalize = "mini_imagenet", "imagenet"
    of = Experiment.of(config, {split: store(split, 3) for split in ("train", "val", "test")})
    assert of.tasks.spec.normalization == data.IMAGENET_STATISTICS


def test_regression_from_a_configuration(tmp_path):
    """Tasks that are not made of images, trained, and evaluated after every number of steps."""
    config = config_of("sinusoid", train__steps=3, train__report_every=3, eval__steps=2, eval__by_step=True)
    of = Experiment.of(config, {})
    assert of.tasks == SinusoidTasks(0, "train", 10, 10)
    assert of.eval_tasks == {"test": SinusoidTasks(0, "test", 10, 100)}
    state = train(of, tmp_path)
    assert int(state.step) == 3
    result = Evaluator(of, "test")(state.params, state.stats, 5)
    assert result.accuracies is None
    assert [row["steps"] for row in result.by_step] == [0, 1, 2]
    assert result.by_step[2]["loss"] < result.by_step[0]["loss"]


@pytest.mark.parametrize(
    ("schedule", "changes", "rates"),
    [
        ("constant", {}, {0: 1.0, 99: 1.0}),
        ("step", {"milestones": (4, 8), "factor": 0.1}, {0: 1.0, 3: 1.0, 4: 0.1, 7: 0.1, 8: 0.01, 50: 0.01}),
        ("step", {"milestones": (4,), "factor": 0.5, "period": 3}, {4: 1.0, 5: 1.0, 6: 0.5}),
        ("cosine", {}, {0: 1.0, 6: 0.5, 12: 0.0}),
        ("cosine", {"period": 6}, {5: 1.0, 6: 0.5, 11: 0.5}),
    ],
)
def test_schedules(config, schedule, changes, rates):
    config.outer.schedule, config.outer.rate, config.train.steps = schedule, 1.0, 12
    for name, value in changes.items():
        config.outer[name] = value
    learning_rate = build_schedule(config)
    for step, rate in rates.items():
        np.testing.assert_allclose(learning_rate(step), rate, rtol=1e-5, atol=1e-6, err_msg=str(step))


def test_the_outer_optimiser_clips_before_it_decays(config):
    """Entry by entry; then weight decay is added, and plain SGD takes its step."""
    config.outer.optimizer, config.outer.momentum, config.outer.rate = "sgd", 0.0, 0.5
    config.outer.clip, config.outer.weight_decay = 1.0, 0.1
    optimizer, params = build_outer(config), np.array([10.0, 20.0, -10.0])
    update, _ = jax.jit(optimizer.update)(np.array([3.0, -0.5, -7.0]), optimizer.init(params), params)
    np.testing.assert_allclose(update, [-0.5 * 2, -0.5 * 1.5, -0.5 * -2], rtol=1e-6)
