"""Exported models: the same bits back, by anyone's reader, and nothing that is damaged."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import maml_jax
from maml_jax import cli, tree
from maml_jax.config import preset
from maml_jax.data import data_set
from maml_jax.errors import DataError
from maml_jax.models import card, weights
from tests.helpers import assert_same, pixels
from tests.models import save_run

FILES = ["README.md", "checksums.json", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    save_run(workdir, model__norm="block1=global, batch", inner__learn_rates="tensor")
    protocol = {"data": "glyphs", "split": "test", "way": 3, "shot": 1, "query": 15, "inner_steps": 3, "step": 7}
    figures = {"accuracy": 0.9365, "ci95": 0.0046, "n_tasks": 600}
    transductive = {**figures, "protocol": {**protocol, "norm": "batch", "transductive": True}}
    inductive = {**figures, "accuracy": 0.81, "protocol": {**protocol, "norm": "metabn", "transductive": False}}
    of_before = {**figures, "accuracy": 0.5, "protocol": {**protocol, "step": 6, "norm": "batch"}}
    (workdir / "eval.json").write_text(json.dumps(transductive))
    (workdir / "eval").mkdir()
    for name, report in (("transductive", transductive), ("inductive", inductive), ("before", of_before)):
        (workdir / "eval" / f"{name}.json").write_text(json.dumps(report))
    (workdir / "eval" / "broken.json").write_text("{")
    return workdir


@pytest.fixture
def exported(run, tmp_path):
    weights.export(run, tmp_path / "model")
    return tmp_path / "model"


def test_the_same_bits_come_back(run, exported):
    support, query = pixels(1, shape=(5, 16, 16, 1)), pixels(2, shape=(4, 16, 16, 1))
    models = maml_jax.load(run), maml_jax.load(str(exported))
    for part in ("params", "stats"):
        assert_same(*(getattr(model, part) for model in models), tolerance=0)
    a, b = (model.adapt(support, [0, 1, 1, 0, 2]).predict(query).probabilities for model in models)
    np.testing.assert_array_equal(a, b)
    assert models[1].step == 7


def test_what_is_in_the_folder(run, exported):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    arrays = safetensors.numpy.load_file(exported / "model.safetensors")
    model = maml_jax.load(run)
    leaves = tree.by_name({"params": model.params, "stats": model.stats})
    assert set(arrays) == {name.replace("/", ".") for name in leaves}
    assert {"params.encoder.block1.conv.kernel", "params.rates.head.bias"} < set(arrays)
    assert "stats.lasting_stats.encoder.block1.norm.mean" in arrays
    np.testing.assert_array_equal(arrays["params.head.kernel"], leaves["params/head/kernel"])
    assert json.loads((exported / "config.json").read_text())["format"] == 1


def test_exports_of_a_run_are_the_same_files(run, exported, tmp_path):
    for i in range(5):
        weights.export(run, tmp_path / str(i) / "model")
        for name in FILES:
            assert (tmp_path / str(i) / "model" / name).read_bytes() == (exported / name).read_bytes()


def test_card(exported):
    text = (exported / "README.md").read_text()
    rows = [line for line in text.splitlines() if "600" in line]
    assert len(rows) == 2
    assert "transductive (batch)" in rows[0]
    assert "93.65% ± 0.46%" in rows[0]
    assert "inductive (metabn)" in rows[1]
    assert "no terms" in text
    assert "not measured" not in text
    assert json.loads((exported / "checksums.json").read_text())["model.safetensors"] in text


def test_card_says_what_training_started_from(run, tmp_path):
    config = preset("default")
    made = lambda: card.card("x", run, config, 3, {"a": np.zeros(2)}, "0")  # noqa: E731
    assert "started from" not in made()
    config.train.start, config.train.tasks = "/some/where/other", 1
    assert "| started from | the weights of other |" in made()
    assert "| meta-steps | 3, 1 task each (best checkpoint) |" in made()


def test_card_says_what_was_not_measured(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / "eval.json").unlink()
    shutil.rmtree(workdir / "eval")
    weights.export(workdir, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "Inductive accuracy: not measured." in text
    assert "Transductive accuracy: not measured." in text


def test_terms_of_a_data_set_that_this_program_does_not_know():
    """As one that a program of the user's own added."""
    assert card._terms("mine") == "those of mine"
    assert card._terms("glyphs") == data_set("glyphs").terms


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "a bit flipped", "swapped", "missing", "empty", "a folder"])
def test_damage_is_noticed(exported, name, damage):
    path, content = exported / name, bytearray((exported / name).read_bytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-1] if name != "checksums.json" else content[:-3])
    elif damage == "a bit flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "swapped":
        path.write_bytes((exported / FILES[FILES.index(name) - 1]).read_bytes())
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a folder":
        path.mkdir()
    with pytest.raises(DataError) as caught:
        maml_jax.load(exported)
    assert str(exported) in str(caught.value)


def _sign(folder):
    sums = {name: weights.sha256(folder / name) for name in FILES if name != "checksums.json"}
    (folder / "checksums.json").write_text(json.dumps(sums))


def _arrays(folder, change):
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    change(arrays)
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(arrays, {"step": "7"}))


def _settings(folder, section, **fields):
    stored = json.loads((folder / "config.json").read_text())
    (stored[section] if section else stored).update(fields)
    (folder / "config.json").write_text(json.dumps(stored))


def _of_numbers(folder):
    _settings(folder, "data", name="sinusoid")
    _settings(folder, "model", loss="squared_error", encoder="mlp")
    _settings(folder, "task", way=1)
    _settings(folder, "eval", way=1, checkpoint="latest")
    _settings(folder, "train", validate_every=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: _arrays(f, lambda a: a.pop("params.head.bias")),
            r"params\.head\.bias is lacking, expected F32 \[3\]",
        ),
        (lambda f: _arrays(f, lambda a: a.update(more=np.zeros(2))), r"more is F64 \[2\], expected unknown"),
        (lambda f: _arrays(f, lambda a: a.update({"params.head.bias": np.zeros(4, np.float32)})), r"F32 \[4\]"),
        (lambda f: _arrays(f, lambda a: a["params.head.bias"].fill(np.nan)), r"head\.bias is not finite"),
        (lambda f: _settings(f, "model", width=5), "of another model than its config"),
        (lambda f: _settings(f, "model", encoder="os:getcwd"), "code that does not belong to this program"),
        (lambda f: _settings(f, "data", image_size=5000), "more than 1024"),
        (_of_numbers, "is a model of numbers, and not of images"),
        (lambda f: _settings(f, "inner", steps=-1), "inner.steps=-1 must be"),
        (lambda f: _settings(f, "", format=2), "another format"),
        (lambda f: _settings(f, "", surprise=2), "surprise"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot read"),
        (lambda f: (f / "config.json").write_text("{}"), "it lacks 'format'"),
        (lambda f: (f / "config.json").write_bytes(b" " * 2**21), "too large"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK\3\4" * 99), "cannot read"),
        (lambda f: (f / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}"), "cannot read"),
    ],
)
def test_what_does_not_fit_is_refused_even_if_signed(exported, change, message):
    change(exported)
    _sign(exported)
    with pytest.raises(DataError, match=message):
        maml_jax.load(exported)


def test_nothing_is_read_outside_the_folder(exported):
    (exported / "checksums.json").write_text(json.dumps({"../../etc/passwd": "0"}))
    with pytest.raises(DataError, match="does not list the files"):
        maml_jax.load(exported)


def test_what_is_no_model(tmp_path):
    for given, message in (("nowhere", "no trained model 'nowhere'"), (tmp_path, "holds neither a trained model")):
        with pytest.raises(DataError, match=message):
            maml_jax.load(given)
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(DataError, match="is a file; name the folder"):
        maml_jax.load(tmp_path / "model.pth")
    save_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(DataError, match="no checkpoint"):
        maml_jax.load(tmp_path / "run")


def test_by_name(exported, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", exported.parent)
    assert weights.shipped() == ["model"]
    assert maml_jax.load("model").step == 7
    with pytest.raises(DataError, match="did you mean model"):
        maml_jax.load("modle")


def test_export_replaces_a_model_and_nothing_else(run, exported, monkeypatch):
    before = (exported / "model.safetensors").read_bytes()
    (exported / "README.md").write_text("old")
    assert cli.main(["export", "--workdir", str(run), "--to", str(exported)]) == 0
    assert (exported / "README.md").read_text() != "old"
    (exported / "mine.txt").write_text("keep")
    assert cli.main(["export", "--workdir", str(run), "--to", str(exported)]) == 2
    assert (exported / "mine.txt").read_text() == "keep"
    (exported / "mine.txt").unlink()

    rename = os.rename

    def fail_once(source, target):
        if source.name == "new":
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(DataError, match=r"cannot write .*: disk full"):
        weights.export(run, exported)
    assert (exported / "model.safetensors").read_bytes() == before
    assert [path.name for path in exported.parent.iterdir()] == ["model"], "something was left behind"


def test_images_in_colour_are_known_by_the_weights(tmp_path):
    save_run(tmp_path / "run", channels=3, data__normalize="imagenet")
    assert maml_jax.load(tmp_path / "run").channels == 3


def test_code_of_ones_own_is_run_if_asked_for(tmp_path):
    save_run(tmp_path / "run", model__encoder="tests.models:Own", model__options="", model__width=0)
    with pytest.raises(DataError, match="own_code=True"):
        maml_jax.load(tmp_path / "run")
    weights.export(tmp_path / "run", tmp_path / "model", own_code=True)
    model = maml_jax.load(tmp_path / "model", own_code=True)
    assert jax.tree.leaves(model.params)


@pytest.mark.parametrize("name", weights.shipped())
def test_every_shipped_model_loads_and_its_card_has_both_protocols(name):
    """And it tells the images of its own support set apart."""
    trained = maml_jax.load(name)
    text = (weights.SHIPPED / name / "README.md").read_text()
    assert "| inductive (metabn) |" in text
    assert "| transductive (batch) |" in text
    assert "terms of the data" in text
    ramp = np.linspace(0, 1, trained.look.size)
    ramps = [np.tile(np.roll(ramp, 5 * i), (len(ramp), 1)) for i in range(3)]
    images = np.stack(ramps)[..., None].repeat(trained.channels, -1)
    said = trained.adapt(images, ["a", "b", "c"]).predict(images)
    assert said.labels == ["a", "b", "c"]


def test_nothing_of_the_machine_is_exported(tmp_path):
    """Where its data lay and which devices it had is nobody's business, and of no use elsewhere."""
    save_run(tmp_path / "run", data__dir=str(tmp_path), data__cache_dir=str(tmp_path), parallel__cpu_devices=3)
    weights.export(tmp_path / "run", tmp_path / "model")
    text = (tmp_path / "model" / "config.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["parallel"]["cpu_devices"] == 0
    maml_jax.load(tmp_path / "model")


def test_shipped_weights_do_what_their_card_says(cache, monkeypatch):
    """On characters that no class of the training has; the card gives 93.7 %, and 92.8 % each query by itself."""
    monkeypatch.setenv("MAML_JAX_CACHE", str(cache))
    assert "glyphs_5w1s" in weights.shipped()
    trained = maml_jax.load("glyphs_5w1s")
    tasks = maml_jax.load_tasks("glyphs", "test", query=5)
    right = []
    for i in range(12):
        task = jax.tree.map(np.asarray, tasks.sample(jnp.int32(i))._replace(key=None))
        adapted = trained.adapt(task.support_x, task.support_y.tolist())
        right.append(np.mean(np.array(adapted.predict(task.query_x).labels) == task.query_y))
    assert np.mean(right) > 0.85
