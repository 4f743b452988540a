"""Evaluation: which tasks, and which figures."""

import jax
import numpy as np
import pytest

from maml_jax.data.sinusoid import SinusoidTasks
from maml_jax.evaluate import EachTask, Evaluation, Evaluator
from maml_jax.nn.mlp import MLP
from maml_jax.nn.model import learner
from tests.helpers import experiment, image_tasks, small


@pytest.fixture(scope="module")
def scored():
    """The figures of so many tasks, all by one evaluator."""
    of = experiment(testing={"steps": 1})
    state, evaluator = of.fresh_state(), Evaluator(of, "val")
    return lambda tasks: evaluator(state.params, state.stats, tasks)


@pytest.mark.parametrize("tasks", [1, 7, 28, 29])
def test_any_number_of_tasks_is_the_start_of_more(scored, tasks):
    """A call takes 28 tasks, seven on each of four devices; a surplus is cut off."""
    few, many = scored(tasks), scored(57)
    assert few.accuracies.shape == few.losses.shape == (tasks,)
    np.testing.assert_array_equal(few.accuracies, many.accuracies[:tasks])
    np.testing.assert_array_equal(few.losses, many.losses[:tasks])
    assert len(set(many.losses.tolist())) == 57, "every task is another one"


def test_any_number_of_tasks_takes_one_compilation():
    traced, tasks = [], image_tasks(way=2, query=3)

    def sizes(params, stats, episode):
        traced.append(episode.query_x.shape)
        return {"mean": episode.query_x.mean()}

    each = EachTask(sizes)
    outcomes = [each({}, {}, tasks, count)["mean"] for count in (1, 28, 60, 6 * each.per_call + 1)]
    assert len(traced) == 1
    assert all(np.array_equal(few, outcomes[-1][: len(few)]) for few in outcomes)


def test_splits_have_tasks_of_their_own(scored):
    of = experiment()
    state = of.fresh_state()
    assert not np.array_equal(Evaluator(of, "test")(state.params, state.stats, 5).losses, scored(5).losses)


MODELS = {
    "classification": (small("block1=per_step, episodic", steps=2), None),
    "regression": (
        learner(MLP(4), loss="squared_error"),
        dict.fromkeys(("train", "val", "test"), SinusoidTasks(seed=0, split="test", shot=3, query=4)),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_by_step_is_an_evaluation_at_every_number_of_steps(kind):
    model, tasks = MODELS[kind]
    state = experiment(model, tasks).fresh_state()

    def score(steps, by_step=False):
        evaluator = Evaluator(experiment(model, tasks, testing={"steps": steps, "by_step": by_step}), "test")
        return evaluator(state.params, state.stats, 5)

    every = score(2, by_step=True)
    assert every.losses_by_step.shape == (5, 3)
    for steps in range(3):
        alone = score(steps)
        np.testing.assert_allclose(every.losses_by_step[:, steps], alone.losses, rtol=1e-5)
        if kind == "classification":
            np.testing.assert_array_equal(every.accuracies_by_step[:, steps], alone.accuracies)
    np.testing.assert_array_equal(every.predictions, alone.predictions)
    assert len({tuple(column) for column in every.losses_by_step.T.tolist()}) == 3
    np.testing.assert_array_equal(every.losses, every.losses_by_step[:, 2])
    assert (every.accuracies is None) == (every.accuracies_by_step is None) == (kind == "regression")
    figures = {"loss", "loss_ci95"} | ({"accuracy", "accuracy_ci95"} if kind == "classification" else set())
    assert [row["steps"] for row in every.by_step] == [0, 1, 2]
    assert all(row.keys() == {"steps"} | figures for row in every.by_step)
    assert every.by_step[2]["loss"] == pytest.approx(every.loss)


def test_interval_is_students_t():
    evaluation = Evaluation(losses=np.zeros(3), accuracies=np.array([0.2, 0.4, 0.6]))
    np.testing.assert_allclose(evaluation.ci95, 4.302653 * 0.2 / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(evaluation.accuracy, 0.4)
    assert evaluation.score == evaluation.accuracy
    assert str(evaluation) == "accuracy 40.00% ± 49.68%"
    assert evaluation.by_step == []
    assert np.isnan(Evaluation(losses=np.ones(1)).ci95), "of one task there is none"


def test_regression_is_judged_by_its_loss():
    evaluation = Evaluation(losses=np.array([2.0, 4.0, 6.0]))
    np.testing.assert_allclose(evaluation.ci95, 4.302653 * 2 / np.sqrt(3), rtol=1e-6)
    assert evaluation.score == -4
    assert evaluation.means.keys() == {"ci95", "loss"}
    assert str(evaluation) == "loss 4.0000 ± 4.9683"
    assert evaluation.arrays().keys() == {"losses"}


def test_other_ways_than_in_training():
    """A head that starts at zero fits the ways of the tasks it is tested on."""
    train, test = (small(blocks=1, starts="zero", way=way) for way in (2, 4))
    of = experiment(train, {"train": image_tasks(), "test": image_tasks("test", way=4)})
    state = of.fresh_state()
    at_test = experiment(test, of.eval_tasks)
    result = Evaluator(at_test, "test")(state.params, state.stats, 5)
    assert result.accuracies.shape == (5,)
    assert jax.tree.structure(state.params) == jax.tree.structure(at_test.fresh_state().params)
