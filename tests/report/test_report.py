"""A run in pictures: what they show is what was measured, and no training fails for want of them."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maml_jax import commands, report, results, train
from maml_jax import config as config_lib
from maml_jax.data.store import ClassStore
from maml_jax.data.stream import HostTasks, drawn_classes
from maml_jax.report import learning
from maml_jax.report.episode import Judged, draw_episode, judged, letter
from tests.helpers import ROOT, TINY, experiment, image_tasks

NORMALIZATION = ((0.3,), (0.2,))
PICTURES = ["learning.png", "task_median.png", "task_worst.png"]


def test_a_run_ends_with_a_report_which_is_remade_on_request(launch, tmp_path):
    status, out, err = launch("--workdir", "run", *TINY)
    assert status == 0
    assert "report: run/report/README.md" in err
    folder = tmp_path / "run" / "report"
    text = (folder / "README.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", *PICTURES]
    assert all(f"]({name})" in text for name in PICTURES)
    assert f"**{out.split('accuracy ')[1].split(' over')[0]}** on the test split of glyphs" in text
    assert "| `model.width` | `2` | `0` |" in text
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, name  # not blank
        (folder / name).unlink()
    assert launch("evaluate", "--workdir", "run", "--config.eval.shot=2")[0] == 0  # which is not the run's protocol
    assert launch("report", "--workdir", "run")[:2] == (0, "run/report/README.md\n")
    again = (folder / "README.md").read_text()
    assert all((folder / name).exists() for name in PICTURES)
    assert again.splitlines()[:12] == text.splitlines()[:12]
    assert again.count("| transductive (batch) | glyphs test |") == 2
    (tmp_path / "run" / "metrics.jsonl").write_text("{nonsense}\n")
    status, _, err = launch("report", "--workdir", "run")
    assert status == 2
    assert "cannot read run/metrics.jsonl" in err


def test_no_training_fails_for_want_of_a_report(launch, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(commands.report, "write", fail)
    status, out, err = launch("--workdir", "run", *TINY)
    assert status == 0
    assert out.startswith("test accuracy")
    assert "no report was written (RuntimeError: no fonts)" in err
    assert (tmp_path / "run" / "eval.json").exists()


def test_matplotlib_is_loaded_for_a_picture_only():
    program = "import sys, maml_jax.commands, maml_jax.audit.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# A task again


@pytest.fixture(scope="module")
def of_tasks():
    """Tasks of normalised images, and what an evaluation would keep of 4 of them; predictions are drawn at random."""
    tasks = image_tasks("test", side=8, classes=6, way=3, shot=2, query=4)
    tasks = dataclasses.replace(tasks, spec=dataclasses.replace(tasks.spec, normalization=NORMALIZATION))
    rng = np.random.default_rng(0)
    kept = {
        "labels": np.tile(np.repeat(np.arange(3), 4), (4, 1)),
        "predictions": rng.integers(0, 3, (4, 12)),
        "confidences": rng.random((4, 12)),
        "classes": drawn_classes(tasks, 4),
        "class_names": np.array(list("pqrstu")),
    }
    return tasks, kept


def test_a_task_is_shown_as_it_was_evaluated(of_tasks):
    tasks, kept = of_tasks
    stored = np.asarray(tasks.pixels) / 255
    for index in range(4):
        task = judged(tasks, NORMALIZATION, kept, index)
        right = kept["predictions"][index] == kept["labels"][index]
        assert task.accuracy == right.mean()
        np.testing.assert_array_equal(task.confidences.ravel(), kept["confidences"][index])
        seen = []
        for name, images in zip(task.names, np.concatenate([task.support, task.query], 1), strict=True):
            c = "pqrstu".index(name)
            for image in images:
                distances = np.abs(stored[8 * c : 8 * c + 8] - image).max((1, 2, 3))
                assert distances.min() < 1e-6
                seen.append((c, int(distances.argmin())))
        assert len(set(seen)) == 3 * (2 + 4)


def test_a_task_whose_images_stay_on_the_host_is_shown_alike(of_tasks):
    tasks, kept = of_tasks
    store = ClassStore(tasks.pixels, tasks.offsets, tuple("pqrstu"), "test")
    ours, theirs = (judged(t, NORMALIZATION, kept, 2) for t in (tasks, HostTasks(tasks.spec, store)))
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, atol=1e-6)
        else:
            assert a == b


@pytest.mark.parametrize(("way", "shot", "query", "channels", "sure"), [(2, 1, 1, 1, True), (12, 7, 20, 3, False)])
def test_tasks_of_any_size_are_drawn(tmp_path, way, shot, query, channels, sure):
    rng = np.random.default_rng(0)
    images = lambda count: rng.random((way, count, 8, 8, channels))  # noqa: E731
    confidences = rng.random((way, query)) if sure else None
    names = ["a name that is longer than there is room for, by far"] * way
    task = Judged(images(shot), images(query), rng.integers(0, way, (way, query)), confidences, names)
    draw_episode(task, "A title", tmp_path / "task.png")
    with Image.open(tmp_path / "task.png") as picture:
        width, height = picture.size
    assert 200 < width < 2500
    assert 150 < height < 1500


def test_letters():
    assert [letter(label) for label in (0, 25, 26, 51, 52, 702)] == ["A", "Z", "AA", "AZ", "BA", "AAA"]


# The learning curve


def test_the_running_mean_is_centred():
    values = np.random.default_rng(0).random(50)
    expected = [values[i - r : i + r + 1].mean() for i in range(50) for r in [min(4, i, 49 - i)]]
    np.testing.assert_allclose(learning.running_mean(values, 4), expected)


@pytest.mark.parametrize("points", [0, 1, 200])
@pytest.mark.parametrize("extra", [{}, {"accuracy": 0.5, "ci95": None}])
def test_runs_of_any_length_are_drawn(tmp_path, points, extra):
    """Without validation, of regression, with an interval that is none, with a loss that is none."""
    rows = [{"step": s, "split": "train", "loss": None if s == 7 else 1 / (s + 1), **extra} for s in range(points)]
    rows += [{"step": s, "split": "val", "loss": 2.0, **extra} for s in range(0, points, 50)]
    learning.draw_learning(rows or [{"step": 0, "split": "val", "loss": 1.0}], 3, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").stat().st_size > 5000


# Which evaluation


def test_the_latest_evaluation_under_the_runs_own_protocol_is_shown(tmp_path):
    testing = experiment().testing._replace(facts={"norm": "batch", "way": 5}, data={"name": "glyphs"})
    own = {"norm": "batch", "way": 5, "split": "test", "inner_steps": 1, "checkpoint": "best", "step": 7}
    whole = dataclasses.replace(experiment(), testing=testing)
    assert results.latest_of(tmp_path, whole, 7) is None
    (tmp_path / "eval").mkdir()

    def keep(name, when, data="glyphs", **protocol):
        path = tmp_path / "eval" / f"{name}.json"
        path.write_text(json.dumps({"mark": name, "protocol": {**own, **protocol}, "data": {"name": data}}))
        np.savez(path.with_suffix(".npz"), mark=np.array(name))
        os.utime(path, (when, when))

    keep("z_first", 100)
    keep("second", 200)
    keep("other_norm", 300, norm="metabn")
    keep("other_step", 400, step=6)
    keep("other_data", 500, data="omniglot")
    keep("without_tasks", 600)
    (tmp_path / "eval" / "without_tasks.npz").unlink()
    (tmp_path / "eval" / "broken.json").write_text("{")
    found, arrays = results.latest_of(tmp_path, whole, 7)
    assert found["mark"] == str(arrays["mark"]) == "second"


def test_a_run_that_was_not_evaluated_under_its_own_protocol(tmp_path):
    """Is reported as far as there is anything to report."""
    run = experiment()
    state = train.train(run, tmp_path)
    text = report.write(tmp_path, run, state, config_lib.flatten(config_lib.default())).read_text()
    assert "Not evaluated under its own protocol; `maml-jax evaluate --workdir DIR` does it." in text
    assert "learning.png" in text
