"""Any Flax module as a learner: how it is called, what it draws, what it remembers; and clear errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax
from maml_jax import Episode, InnerLoop, Maml, Pass, Phase, adapt, learner, meta_gradient, predict, sgd, tree
from maml_jax.evaluate import Evaluator
from maml_jax.meta.outer import task_loss
from maml_jax.meta.step import init_state, meta_step
from maml_jax.nn.loss import cross_entropy
from maml_jax.train import train
from tests.helpers import assert_same, differs, episodes, experiment, one_task, small

INNER = InnerLoop(sgd(0.1))


def two_layers(x):
    x = nn.Dense(4, name="first")(x.reshape(len(x), -1))
    return nn.Dense(2, name="second")(nn.tanh(x))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return two_layers(x)


class WithPhase(nn.Module):
    """Says by its outputs in which phase it was."""

    @nn.compact
    def __call__(self, x, phase):
        return two_layers(x) + 10.0 * phase.which.value + 100.0 * phase.step + 1000.0 * phase.train


class WithTrain(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return two_layers(x) + 1000.0 * train


def test_a_module_is_told_what_its_call_takes():
    task = one_task()
    params, stats = learner(Plain()).init(jax.random.key(0), task.support_x)
    for module, told in ((Plain(), 0), (WithTrain(), 1000), (WithPhase(), 1000 + 10 * Pass.CONTEXT.value + 200)):
        of = learner(module)
        assert_same(of.init(jax.random.key(0), task.support_x), (params, stats), 0)
        plain, _ = learner(Plain()).apply(params, stats, task.query_x, Phase())
        outputs, _ = of.apply(params, stats, task.query_x, Phase(Pass.CONTEXT, True, 2))
        np.testing.assert_allclose(outputs - told, plain, atol=1e-3)
        at_test, _ = of.apply(params, stats, task.query_x, Phase(Pass.CONTEXT, False, 2))
        assert_same(at_test, outputs - (1000 if told else 0), 1e-3)


def test_a_plain_module_with_a_loss_and_a_rule_of_ones_own():
    """The whole way: meta-trained by `optax.sgd` within and Adam without, and used to predict."""

    def hinge(outputs, y):
        return optax.hinge_loss(outputs[:, 1] - outputs[:, 0], 2.0 * y - 1).mean()

    method, optimizer = Maml(learner(Plain(), loss=hinge), InnerLoop(optax.sgd(0.1)), 2), optax.adam(0.02)
    tasks, task = episodes(), one_task()
    state = init_state(method, optimizer, jax.random.key(0), task)
    step = jax.jit(lambda state: meta_step(method, optimizer, state, tasks))
    losses = []
    for _ in range(30):
        before, (state, results) = state, step(state)
        losses.append(float(results.loss.mean()))
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(results.loss[0], hinge(results.logits[0], tasks.query_y[0]), rtol=1e-6)
    logits = predict(method, before.params, before.stats, task.support_x, task.support_y, task.query_x)
    np.testing.assert_allclose(logits, results.logits[0], rtol=1e-4, atol=1e-5)


def test_features_are_what_the_head_sees():
    of, task = small(blocks=1), one_task()
    params, stats = of.init(jax.random.key(0), task.support_x)
    features, _ = of.features(params, stats, task.query_x, Phase())
    logits, _ = of.apply(params, stats, task.query_x, Phase())
    assert_same(features @ params["head"]["kernel"] + params["head"]["bias"], logits, 1e-6)


class Dropped(nn.Module):
    """Keeps the mask of its dropout among its statistics, where it can be seen."""

    @nn.compact
    def __call__(self, x, train):
        mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones(32))
        self.variable("seen", "mask", jnp.zeros, 32).value = mask
        return two_layers(x) * mask.mean()


def masks(key, train=True):
    """Those of three inner steps, and then of the query pass of training."""
    of, task = learner(Dropped()), one_task()
    params, stats = of.init(jax.random.key(0), task.support_x)
    watch = lambda loss, params, stats, k: stats["seen"]["mask"]  # noqa: E731
    support = adapt(of, INNER, params, stats, task.support_x, task.support_y, 3, train, watch, key)[2]
    if not train:
        return support
    query = task_loss(of, INNER, params, stats, task._replace(key=key), 3)[1].stats["seen"]["mask"]
    return jnp.concatenate([support, query[None]])


def test_dropout_draws_anew_in_every_step_and_pass():
    one, again, other = masks(jax.random.key(1)), masks(jax.random.key(1)), masks(jax.random.key(2))
    assert set(np.unique(one)) == {0, 2}
    assert len({tuple(mask) for mask in np.concatenate([one, other]).tolist()}) == 8
    assert_same(one, again, 0)


def test_there_is_no_dropout_at_test():
    """And no key is needed."""
    assert np.all(masks(None, train=False) == 1)
    of, task = learner(Dropped()), one_task()
    params, stats = of.init(jax.random.key(0), task.support_x)
    method = Maml(of, INNER, 2)
    result = maml_jax.evaluate_task(method, params, stats, task)
    assert np.all(result.stats["seen"]["mask"] == 1)


def test_dropout_in_a_batch_of_tasks():
    """Each task has its mask, whichever tasks are computed side by side."""
    of, tasks = learner(Dropped()), episodes(tasks=4)
    tasks = tasks._replace(key=jax.random.split(jax.random.key(3), 4))
    params, stats = of.init(jax.random.key(0), tasks.support_x[0])
    runs = [jax.jit(functools.partial(meta_gradient, Maml(of, INNER, 1), tasks_at_once=n)) for n in (1, 2, 4)]
    results = [run(params, stats, tasks) for run in runs]
    assert len({tuple(mask) for mask in results[0][1].stats["seen"]["mask"].tolist()}) == 4
    for other in results[1:]:
        assert_same(other, results[0], 1e-5)


def test_a_key_that_is_lacking_is_one_clear_error():
    of, tasks = learner(Dropped()), episodes()
    params, stats = of.init(jax.random.key(0), tasks.support_x[0])
    with pytest.raises(ValueError, match=r"draws random numbers.*no key.*Episode\(\.\.\., key=\.\.\.\)"):
        meta_gradient(Maml(of, INNER, 1), params, stats, tasks)


def test_dropout_in_a_training_run(tmp_path):
    """Tasks drawn from a store bring their keys; an evaluation gives the same twice."""
    of = experiment(learner(Dropped()), steps=4, validate_every=4)
    state = train(of, tmp_path)
    first, second = (Evaluator(of, "test")(state.params, state.stats, 3) for _ in range(2))
    np.testing.assert_array_equal(first.losses, second.losses)
    assert state.stats == {}


class Spy:
    """A learner of nobody's: linear, and writes down in which phases it was evaluated."""

    uses_context = True

    def __init__(self):
        self.seen = []

    def init(self, key, x):
        return {"w": jnp.zeros((x[0].size, 2))}, ()

    def start(self, params, stats, support_x, support_y):
        return params, stats

    def apply(self, params, stats, x, phase):
        key = None if phase.key is None else tuple(jax.random.key_data(phase.key).tolist())
        self.seen.append((phase.which, phase.train, int(phase.step), key))
        return x.reshape(len(x), -1) @ params["w"], stats

    def loss(self, outputs, y):
        return cross_entropy(outputs, y)

    def lasting(self, stats):
        return stats


def test_every_evaluation_has_its_phase_and_a_key_of_its_own():
    """Two inner steps, with a query loss after each: a context pass and a query pass after either."""
    spy, task = Spy(), one_task()._replace(key=jax.random.key(0))
    inner = InnerLoop(sgd(0.1), checkpoint="none")
    params, stats = spy.init(None, task.support_x)
    with jax.disable_jit():
        task_loss(spy, inner, params, stats, task, 2, jnp.asarray([0.5, 0.5]))
    support, context, query = Pass.SUPPORT, Pass.CONTEXT, Pass.QUERY
    where = [(which, step) for which, _, step, _ in spy.seen]
    assert where == [(support, 0), (context, 0), (query, 0), (support, 1), (context, 1), (query, 1)]
    assert all(in_training for _, in_training, _, _ in spy.seen)
    assert len({key for *_, key in spy.seen}) == 6

    spy.seen.clear()
    with jax.disable_jit():
        predict(Maml(spy, inner, 2), params, stats, task.support_x, task.support_y, task.query_x)
    assert spy.seen == [(which, False, k, None) for which, k in ((support, 0), (support, 1), (context, 1), (query, 1))]


class Normalized(nn.Module):
    """With Flax's own batch normalisation: the batch's moments on support, the running ones on the query."""

    @nn.compact
    def __call__(self, x, phase):
        x = x.reshape(len(x), -1)
        x = nn.BatchNorm(use_running_average=phase.which is Pass.QUERY, momentum=0.9, name="norm")(x)
        return nn.Dense(2)(x)


def test_statistics_of_flax_layers_are_fresh_in_every_episode():
    """Two support passes leave (1 - 0.9²) of the support set's mean, whatever was before."""
    of, tasks = learner(Normalized()), episodes()
    params, stats = of.init(jax.random.key(0), tasks.support_x[0])
    assert stats == {}
    for i in range(2):
        _, after, _ = adapt(of, INNER, params, stats, tasks.support_x[i], tasks.support_y[i], 2, True)
        mean = tasks.support_x[i].reshape(4, -1).mean(0)
        np.testing.assert_allclose(after["batch_stats"]["norm"]["mean"], (1 - 0.9**2) * mean, rtol=1e-5)
    state = init_state(Maml(of, INNER, 2), optax.sgd(0.1), jax.random.key(0), one_task())
    state, results = jax.jit(lambda s: meta_step(Maml(of, INNER, 2), optax.sgd(0.1), s, tasks))(state)
    assert state.stats == {}
    assert differs(results.stats["batch_stats"]["norm"]["mean"][0], results.stats["batch_stats"]["norm"]["mean"][1])


def test_collections_of_ones_choice_outlive_an_episode():
    of, tasks = learner(Normalized(), lasts=("batch_stats",)), episodes()
    method, optimizer = Maml(of, INNER, 2), optax.sgd(0.1)
    state = init_state(method, optimizer, jax.random.key(0), one_task())
    step = jax.jit(lambda s: meta_step(method, optimizer, s, tasks)[0])
    means = tasks.support_x.reshape(2, 4, -1).mean((0, 1))
    for passes in (2, 4):
        state = step(state)
        np.testing.assert_allclose(state.stats["batch_stats"]["norm"]["mean"], (1 - 0.9**passes) * means, rtol=1e-5)


def test_another_start_at_zero():
    """By a pattern of ones own: what starts at zero is no meta-parameter, and fits any number of classes."""
    of, task = learner(Plain(), starts=maml_jax.Zero("^second")), one_task()
    params, stats = of.init(jax.random.key(0), task.support_x)
    assert tree.names(params) == ["first/bias", "first/kernel"]
    start, _ = of.start(params, stats, task.support_x, task.support_y)
    assert start["second"]["kernel"].shape == (4, 2)
    assert not jnp.any(start["second"]["kernel"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learner(Plain(), loss="crossentropy"), r"loss='crossentropy' must be one of cross_entropy, "),
        (lambda: learner(Plain(), starts="Zero"), r"starts='Zero' must be one of meta, zero, shared, prototypes"),
        (lambda: learner(Plain), r"learner wants a Flax Linen module, such as MyNet\(\)"),
        (lambda: learner(lambda x: x), r"learner wants a Flax Linen module"),
    ],
)
def test_what_makes_no_learner_is_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_another_module_are_one_clear_error():
    task = one_task()
    params, stats = small(blocks=1).init(jax.random.key(0), task.support_x)
    support = Episode(*task).support_x, task.support_y
    with pytest.raises(ValueError, match=r"parameter head/bias is \(2,\), but the module and .* want \(3,\)"):
        adapt(small(blocks=1, way=3), INNER, params, stats, *support, 1)
    with pytest.raises(ValueError, match=r"parameter encoder/block2/conv/bias is lacking"):
        adapt(small(), INNER, params, stats, *support, 1)
