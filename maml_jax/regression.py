"""Sinusoid regression at meta-test: error by number of gradient steps, against a jointly trained network."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import ml_collections
import numpy as np
import scipy.stats

from maml_jax import experiment, train
from maml_jax.checkpoint import Checkpoints
from maml_jax.data import sinusoid
from maml_jax.data.sampler import DeviceImages
from maml_jax.episode import Episode
from maml_jax.files import write_whole
from maml_jax.meta.inner import adapt
from maml_jax.nn.norm import Pass
from maml_jax.progress import say
from maml_jax.tree import PyTree

_REPORTED = (0, 1, 5, 10)  # gradient steps, as far as there are so many
_DRAWN = 3  # tasks whose curves are drawn

Predict = Callable[[PyTree, Episode], jax.Array]


def evaluate(config: ml_collections.ConfigDict, images: DeviceImages, workdir: Path) -> str:
    """Evaluates a run, and a network trained jointly on all tasks, fine-tuned in the same way.

    The joint training is the run's own with no inner steps: then the meta-loss is the loss of all tasks alike. It takes
    as many meta-steps, in `joint/`, the first time it is needed.

    Writes `eval.json`, `eval_tasks.npz` (the errors of each task by number of steps) and `report/sinusoid.png`.

    Args:
      config: the configuration.
      images: none; see `sinusoid.stores`.
      workdir: of the run.

    Returns:
      A table of the mean squared errors.
    """
    joint = config.copy_and_resolve_references()
    joint.inner.steps, joint.inner.learn_rates, joint.inner.rates_per_step = 0, "none", False
    joint.outer.multi_step = joint.outer.first_order = 0
    (workdir / "joint").mkdir(exist_ok=True)
    say("training a network jointly on all tasks, to compare with")
    train.train(joint, {"train": images}, workdir / "joint")

    tasks = _tasks(config, np.arange(config.eval.tasks))
    shown = _tasks(config, np.arange(_DRAWN))
    grid = jnp.linspace(*sinusoid.INPUTS, 200)[:, None]
    errors, curves = {}, {}
    for name, settings, folder in (("maml", config, workdir), ("joint", joint, workdir / "joint")):
        predict, params, step = _predictor(settings, folder, config.eval.steps)
        outputs = jax.jit(jax.vmap(predict, (None, 0)))(params, tasks)  # [tasks, steps + 1, query, 1]
        errors[name] = np.asarray(jnp.square(outputs - tasks.query_y[:, None]).mean((2, 3)))
        on_grid = shown._replace(query_x=jnp.broadcast_to(grid, (_DRAWN, *grid.shape)))
        curves[name] = np.asarray(jax.vmap(predict, (None, 0))(params, on_grid))[..., 0]
    counts = [count for count in _REPORTED if count <= config.eval.steps]
    _write(config, workdir, errors, counts, step)
    _draw(workdir / "report", shown, np.asarray(grid)[:, 0], curves, counts)
    return _table(config, errors, counts)


def _tasks(config, indices):
    spec = experiment.eval_tasks(config, config.eval.split)
    return jax.vmap(lambda index: sinusoid.sample_task(spec, index))(jnp.asarray(indices, jnp.int32))


def _predictor(config: ml_collections.ConfigDict, folder: Path, steps: int) -> tuple[Predict, PyTree, int]:
    """Query outputs after 0 .. steps gradient steps, `[steps + 1, query, 1]`; the run's parameters, and its step."""
    model = experiment.build_model(config, 1, (1,))
    inner = experiment.build_inner(config)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = checkpoints.restore(config.eval.checkpoint, train.fresh_state(config, (1,)))

    def predict(params, task):
        def query(params, k):
            return model.apply(params, {}, task.query_x, Pass.QUERY, False, k)[0]

        before = query(model.episode_params(params), 0)
        _, _, after = adapt(
            model, inner, params, {}, task.support_x, task.support_y, steps, False, lambda _, p, stats, k: query(p, k)
        )
        return jnp.concatenate([before[None], after])

    return predict, state.params, int(state.step)


def _interval(values):
    n = len(values)
    return float(scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)


def _write(config, workdir, errors, counts, step):
    e = config.eval
    report = {
        "mean_squared_error": {
            name: {
                str(count): {"mean": float(rows[:, count].mean()), "ci95": _interval(rows[:, count])}
                for count in counts
            }
            for name, rows in errors.items()
        },
        "n_tasks": e.tasks,
        "protocol": {
            "data": config.data.name,
            "split": e.split,
            "shot": e.shot,
            "query": e.query,
            "encoder_rate": config.inner.encoder_rate,
            "head_rate": config.inner.head_rate,
            "checkpoint": e.checkpoint,
            "step": step,
            "seed": config.seed,
        },
    }
    write_whole(workdir / "eval_tasks.npz", lambda file: np.savez(file, **errors))
    write_whole(workdir / "eval.json", lambda file: file.write((json.dumps(report, indent=2) + "\n").encode()))


def _table(config, errors, counts):
    lines = [f"mean squared error over {config.eval.tasks} tasks, {config.eval.shot} shots, by gradient steps"]
    lines.append("       " + "".join(f"{count:>18}" for count in counts))
    for name, rows in errors.items():
        cells = (f"{rows[:, count].mean():10.4f} ± {_interval(rows[:, count]):.4f}" for count in counts)
        lines.append(f"{name:7}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _draw(folder: Path, tasks: Episode, x: np.ndarray, curves: dict[str, np.ndarray], counts: list[int]) -> None:
    """Draws what is predicted for a few tasks, a row for each network, after each of the numbers of steps."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(curves), _DRAWN, figsize=(4 * _DRAWN, 3 * len(curves)), sharex=True)
    for row, (name, outputs) in zip(axes, curves.items(), strict=True):
        for i, axis in enumerate(row):
            for count in counts:
                axis.plot(x, outputs[i, count], label=f"{count} steps", alpha=0.4 + 0.6 * count / max(counts[-1], 1))
            axis.plot(*_true_curve(tasks, i), ".", color="grey", markersize=1, label="truth")
            axis.plot(tasks.support_x[i, :, 0], tasks.support_y[i, :, 0], "k^", label="support")
            axis.set_title(f"{name}, task {i}")
    axes[0, 0].legend(fontsize="x-small")
    figure.tight_layout()
    folder.mkdir(exist_ok=True)
    write_whole(folder / "sinusoid.png", lambda file: figure.savefig(file, format="png", dpi=120))
    pyplot.close(figure)


def _true_curve(tasks, i):
    return np.asarray(tasks.query_x[i, :, 0]), np.asarray(tasks.query_y[i, :, 0])
