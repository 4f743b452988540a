"""To look for numbers that are not finite, and to leave such meta-steps out, costs next to nothing.

It is counted, not timed: what XLA says of the compiled program of a meta-step, with that and without. A loop over tasks
counts as one task there, so that the other tasks are added.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import train
from maml_jax.config import preset
from maml_jax.data.sampler import ImageTasks, TaskSpec
from maml_jax.data.stream import example
from maml_jax.experiment.method import build_method, build_outer
from maml_jax.meta.step import init_state
from maml_jax.parallel import spread

COUNTS = ("flops", "bytes accessed")
SHAPES = {"glyphs_5w1s": (28, 28, 1), "mini_5w1s": (84, 84, 3)}


class Counted:
    """The meta-step of a configuration, on one device and one task after the other, as on a CPU."""

    def __init__(self, name):
        self.config = preset(name)
        task, images = self.config.task, np.zeros((32 * 20, *SHAPES[name]), np.uint8)
        spec = TaskSpec(seed=0, split="train", way=task.way, shot=task.shot, query=task.query)
        self.tasks = ImageTasks(spec, images, np.arange(33, dtype=np.int32) * 20)
        self.method, self.optimizer = build_method(self.config, task.way), build_outer(self.config)
        one = example(self.tasks)
        self.state = jax.eval_shape(lambda key: init_state(self.method, self.optimizer, key, one), jax.random.key(0))

    def meta_step(self, on_nonfinite):
        """The counts of the program, in which the loop over tasks has one."""
        run = functools.partial(
            train.run_steps,
            method=self.method,
            optimizer=self.optimizer,
            per_step=self.config.train.tasks,
            tasks_at_once=1,
            report_every=self.config.train.report_every,
            on_nonfinite=on_nonfinite,
        )
        return counts(spread(run, jax.devices()[:1], "shard_map", donate=(0,)), self.state, self.tasks, np.int32(1))

    def other_tasks(self):
        """The counts of all tasks but one."""
        gradient = jax.jit(lambda state, task: self.method.task_gradient(state.params, state.stats, task, state.step))
        return (self.config.train.tasks - 1) * counts(gradient, self.state, example(self.tasks))


def counts(function, *arguments):
    """What XLA counts in a compiled function, `[COUNTS]`."""
    counted = function.lower(*arguments).compile().cost_analysis()
    return np.array([counted[name] for name in COUNTS])


@pytest.mark.parametrize("name", ["glyphs_5w1s", pytest.param("mini_5w1s", marks=pytest.mark.slow)])
def test_the_guard_adds_a_hundredth_at_most(name, monkeypatch):
    step = Counted(name)
    guarded = {way: step.meta_step(way) for way in ("stop", "skip")}
    monkeypatch.setattr(train, "_all_finite", lambda state: jnp.bool(True))  # XLA then drops what hangs on it
    plain, others = step.meta_step("skip"), step.other_tasks()
    print(f"\n{name}, {step.config.train.tasks} tasks: {dict(zip(COUNTS, plain + others, strict=True))}")
    for way, found in guarded.items():
        more = (found - plain) / (plain + others)
        print(f"  {way}: " + ", ".join(f"{name} {share:+.3%}" for name, share in zip(COUNTS, more, strict=True)))
        assert np.all(more > 0)  # or there would be no guard
        assert np.all(more <= 0.01)
