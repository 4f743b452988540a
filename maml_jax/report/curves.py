"""A picture of tasks that are functions of one number: what is predicted after several numbers of steps."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import drawing
from maml_jax.data.stream import example
from maml_jax.experiment import Experiment
from maml_jax.meta.learner import Pass, Phase
from maml_jax.meta.step import MetaState

_SHOWN = (0, 1, 5, 10)  # gradient steps, as far as there are so many
_TASKS = 3


def is_curve(experiment: Experiment) -> bool:
    """Whether the tasks are functions of one number, which can be drawn."""
    return example(experiment.eval_tasks[experiment.testing.split]).support_x.shape[1:] == (1,)


def draw_curves(experiment: Experiment, state: MetaState, path: Path) -> None:
    """Draws what is predicted for a few tasks of functions of one number, after several numbers of steps.

    Args:
      experiment: with tasks of the split tested on.
      state: what was trained.
      path: of the PNG file.
    """
    tasks, method, steps = _tasks(experiment), experiment.tested, experiment.testing.steps
    low, high = float(tasks.query_x.min()), float(tasks.query_x.max())
    grid = jnp.linspace(low, high, 200)[:, None]

    def predict(x, y):
        def outputs(params, stats, k):
            return method.learner.apply(params, stats, grid, Phase(Pass.QUERY, step=k))[0]

        start, stats, _ = method.adapted(state.params, state.stats, x, y, 0)
        _, _, after = method.adapted(state.params, state.stats, x, y, steps, lambda _, p, s, k: outputs(p, s, k))
        return jnp.concatenate([outputs(start, stats, 0)[None], after])

    curves = np.asarray(jax.vmap(predict)(tasks.support_x, tasks.support_y))[..., 0]
    shown = [count for count in _SHOWN if count <= steps]
    with drawing.figure(path, 4 * _TASKS, 3.2) as figure:
        for i, axes in enumerate(figure.subplots(1, _TASKS, sharey=True)):
            for count in shown:
                strength = 0.3 + 0.7 * count / max(shown[-1], 1)
                label = f"{count} step{'s' * (count != 1)}"
                axes.plot(grid[:, 0], curves[i, count], color=drawing.OWN, label=label, alpha=strength)
            order = np.argsort(tasks.query_x[i, :, 0])
            truth = tasks.query_x[i, order, 0], tasks.query_y[i, order, 0]
            axes.plot(*truth, color=drawing.OTHER, linestyle="--", linewidth=1.2, label="truth")
            axes.plot(tasks.support_x[i, :, 0], tasks.support_y[i, :, 0], "k^", markersize=5, label="support")
            axes.set_title(f"task {i}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(shown) + 2)


def _tasks(experiment):
    tasks = experiment.eval_tasks[experiment.testing.split]
    return jax.vmap(tasks.sample)(jnp.arange(_TASKS, dtype=jnp.int32))
