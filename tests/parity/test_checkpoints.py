"""Checkpoints of the original: in, out, and refused where they do not fit."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from maml_jax import bounded
from maml_jax import config as config_lib
from maml_jax.checkpoint import Checkpoints
from maml_jax.experiment.method import build_method
from maml_jax.meta.method import evaluate_task
from parity import checkpoints, convert, golden, golden_file, replay
from parity.__main__ import main
from parity.reference import ModelSpec, init_params, init_stats

TORCH_ENCODERS = ("convnet4", "wide-convnet4", "resnet12", "wide-resnet12", "resnet18", "wide-resnet18")


@pytest.fixture
def narrow(monkeypatch):
    """Encoders with an eighth of their channels, so that files stay small; `model.width` stands for it."""

    def build_narrow(config, way):
        config = config.copy_and_resolve_references()
        config.model.width = 8 if "convnet4" in config.model.encoder else 4
        return build_method(config, way)

    monkeypatch.setattr(checkpoints, "build_method", build_narrow)
    channels = {n: (c[0], 8 if "convnet4" in n else c[1] // 16) for n, c in checkpoints._CHANNELS.items()}
    monkeypatch.setattr(checkpoints, "_CHANNELS", channels)


def pth(path, encoder="convnet4", norm="batch", size=84, learn_temp=False, seed=0, **changes):
    """A checkpoint as the original saves them, with random weights and statistics."""
    width = 8 if "convnet4" in encoder else 4
    spec = ModelSpec(encoder, 3, size, norm, 2.0, learn_temp, width=width)
    generator = torch.Generator().manual_seed(seed)
    params = init_params(spec, generator)
    arrays = {}
    for name, value in (params | init_stats(spec, params)).items():
        episodic = name.rpartition(".")[2].startswith("running") and spec.mode(name) == "episodic"
        arrays[name] = value if episodic or name == "classifier.temp" else torch.rand(value.shape, generator=generator)
        if episodic:
            arrays |= {f"{name}_{i}": value for i in range(4)}
    parts = {"encoder": {}, "classifier": {}}
    for name, value in arrays.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    blocks = convert.blocks_of(encoder)
    bn_args = {"track_running_stats": norm != "batch", "n_episode": 4}
    episodic = [block for block in blocks if spec.mode(f"encoder.{block}.bn") == "episodic"]
    stored = {
        "file": "train.py",
        "encoder": encoder,
        "encoder_args": {"bn_args": bn_args | ({"episodic": episodic} if episodic else {})},
        "encoder_state_dict": parts["encoder"],
        "classifier": "logistic",
        "classifier_args": {"n_way": 3, "in_dim": 1, "temp": 2.0, "learn_temp": learn_temp},
        "classifier_state_dict": parts["classifier"],
        "training": {"epoch": 1},
    } | changes
    torch.save(stored, path)
    return stored


MIXED = {"conv1": "episodic", "conv2": "global", "conv3": "global", "conv4": "episodic"}


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("encoder", "norm"),
    [(e, n) for e, n in zip(TORCH_ENCODERS, ("batch", "episodic", "global") * 2, strict=True)]
    + [("convnet4", "episodic"), ("convnet4", "global"), ("convnet4", MIXED)],
)
def test_there_and_back_is_exact(tmp_path, monkeypatch, encoder, norm):
    stored = pth(tmp_path / "in.pth", encoder, norm, learn_temp=True)
    assert main(["import", str(tmp_path / "in.pth"), str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.pth")]) == 0
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    for part in ("encoder_state_dict", "classifier_state_dict"):
        assert again[part].keys() == stored[part].keys()
        assert all(torch.equal(again[part][name], value) for name, value in stored[part].items())
    for field in ("encoder", "encoder_args", "classifier"):
        assert again[field] == stored[field]
    assert again["classifier_args"] == stored["classifier_args"] | {"in_dim": again["classifier_args"]["in_dim"]}
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.usefixtures("narrow")
def test_what_the_configuration_says(tmp_path):
    pth(tmp_path / "in.pth", norm=MIXED, size=36)
    assert main(["import", str(tmp_path / "in.pth"), str(tmp_path / "run")]) == 0
    config = config_lib.load(tmp_path / "run" / "config.json")
    assert (config.task.way, config.eval.way, config.data.image_size) == (3, 3, 32)
    assert config.model.norm == "block1=episodic, block2=global, block3=global, episodic"
    assert (config.model.head, config.model.temperature, config.model.learn_temperature) == ("meta", 2.0, False)
    assert (config.data.name, config.eval.steps, config.inner.fixed) == ("mini_imagenet", 10, "norm")
    other = tmp_path / "mine.py"
    other.write_text(
        "from maml_jax.config import preset\n\ndef get_config():\n    c = preset('default')\n"
        "    c.data.image_size = 40\n    c.eval.shot = 5\n    return c\n"
    )
    assert main(["import", str(tmp_path / "in.pth"), str(tmp_path / "new"), "--config", str(other)]) == 0
    config = config_lib.load(tmp_path / "new" / "config.json")
    assert (config.data.image_size, config.eval.shot, config.data.name) == (40, 5, "glyphs")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["best", "latest"])
def test_the_checkpoint_is_one_of_training(tmp_path, kind):
    stored = pth(tmp_path / "in.pth", norm="global")
    assert main(["import", str(tmp_path / "in.pth"), str(tmp_path / "run")]) == 0
    config = config_lib.load(tmp_path / "run" / "config.json")
    with Checkpoints(tmp_path / "run" / "checkpoints") as folder:
        state = folder.restore(kind, checkpoints.fresh_state(config))
    mean = stored["encoder_state_dict"]["encoder.conv2.bn.running_mean"]
    np.testing.assert_array_equal(state.stats["lasting_stats"]["encoder"]["block2"]["norm"]["mean"], mean)
    bias = stored["classifier_state_dict"]["linear.bias"]
    np.testing.assert_array_equal(state.params["head"]["bias"], bias)


def edited(stored, field, value):
    *parents, last = field
    target = stored
    for name in parents:
        target = target[name]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return stored


CONV = "encoder.conv1.conv.weight"


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (("encoder",), "vit", "encoder is 'vit', expected one of convnet4"),
        (("encoder",), None, "encoder is missing"),
        (("encoder_state_dict",), [], "encoder_state_dict is no dict"),
        (("encoder_state_dict", CONV), None, "encoder.encoder.conv1.conv.weight is missing"),
        (("encoder_state_dict", CONV), torch.zeros(8, 1, 3, 3), "conv1.conv.weight gives encoder/block1/conv/kernel"),
        (("encoder_state_dict", "fc.weight"), torch.zeros(2), "convnet4 has no parameter encoder.fc.weight"),
        (("classifier_state_dict", "linear.weight"), None, "linear.weight is missing"),
        (("classifier_state_dict", "linear.weight"), torch.zeros(3, 17), "has 17 columns"),
        (("classifier_args", "temp"), "hot", "classifier_args.temp is 'hot'"),
        (("classifier_args", "temp"), -1.0, "model.temperature=-1.0"),
        (("encoder_args", "bn_args"), {"track_running_stats": True, "episodic": ["layer1"]}, "expected episodic"),
    ],
)
def test_unusable_checkpoints_are_refused(tmp_path, capsys, field, value, problem):
    torch.save(edited(pth(tmp_path / "in.pth"), field, value), tmp_path / "bad.pth")
    refused(capsys, ["import", str(tmp_path / "bad.pth"), str(tmp_path / "run")], problem)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pth", "in.pth"]


def refused(capsys, arguments, problem):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err[:7], err.count("\n")) == ("", "error: ", 1)
    assert problem in err


@pytest.mark.parametrize("damage", ["absent", "text", "cut", "list", "code"])
def test_unreadable_files_are_refused(tmp_path, capsys, damage):
    path = tmp_path / "bad.pth"
    if damage == "code":
        torch.save({"encoder": Path("x").exists}, path)  # would run on loading, were it trusted
    elif damage == "list":
        torch.save([1], path)
    elif damage != "absent":
        torch.save({"encoder": torch.zeros(100)}, path)
        path.write_bytes(b"no archive" if damage == "text" else path.read_bytes()[:500])
    refused(capsys, ["import", str(path), str(tmp_path / "run")], str(path))
    assert not (tmp_path / "run").exists()


def test_what_unpacks_to_far_more_than_it_is_is_refused(tmp_path, capsys, monkeypatch):
    path = tmp_path / "bad.pth"
    torch.save({"encoder": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setattr(bounded, "UNPACKED", 1_000_000)
    refused(capsys, ["import", str(path), str(tmp_path / "run")], "made to fill the memory")


@pytest.mark.usefixtures("narrow")
def test_folders_in_use_are_refused(tmp_path, capsys):
    pth(tmp_path / "in.pth")
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    refused(capsys, ["import", str(tmp_path / "in.pth"), str(run)], "is not an empty folder")
    assert [p.name for p in run.iterdir()] == ["notes.txt"]
    (run / "notes.txt").unlink()
    assert main(["import", str(tmp_path / "in.pth"), str(run)]) == 0


@pytest.mark.usefixtures("narrow")
def test_places_that_cannot_be_written_are_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    pth(tmp_path / "in.pth")
    refused(capsys, ["import", str(tmp_path / "in.pth"), str(tmp_path / "file" / "run")], "cannot write")
    assert main(["import", str(tmp_path / "in.pth"), str(tmp_path / "run")]) == 0
    capsys.readouterr()
    for name, reason in (("file/out.pth", "Not a directory"), ("none/out.pth", "No such file or directory")):
        refused(capsys, ["export", str(tmp_path / "run"), str(tmp_path / name)], f"{name}: {reason}")


@pytest.mark.usefixtures("narrow")
def test_nothing_is_left_of_an_import_that_breaks_off(tmp_path, monkeypatch):
    pth(tmp_path / "in.pth")

    def breaks(*arguments, **facts):
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", breaks)
    with pytest.raises(KeyboardInterrupt):
        main(["import", str(tmp_path / "in.pth"), str(tmp_path / "run")])
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_configurations_that_cannot_be_read_are_refused(tmp_path, capsys):
    pth(tmp_path / "in.pth")
    for text in ("def get_config(:", "x = 1"):
        (tmp_path / "mine.py").write_text(text)
        arguments = ["import", str(tmp_path / "in.pth"), str(tmp_path / "run"), "--config", str(tmp_path / "mine.py")]
        refused(capsys, arguments, "mine.py")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.width": 16}, "model.width=16"),
        ({"model.encoder": "resnet18_standard"}, "none of the original's encoders"),
        ({"model.options": "warp=True"}, "model.options='warp=True' is none of the original's encoders"),
        ({"model.norm": "block1=batch, global"}, "one mode per block, and batch statistics everywhere or nowhere"),
        ({}, "holds no checkpoints"),
    ],
)
def test_runs_that_the_original_has_no_model_for_are_refused(tmp_path, capsys, changes, problem):
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    refused(capsys, ["export", str(tmp_path), str(tmp_path / "out.pth")], problem)
    refused(capsys, ["export", str(tmp_path / "nowhere"), str(tmp_path / "out.pth")], "config.json")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.usefixtures("narrow")
def test_a_zero_head_is_exported_as_zeros(tmp_path):
    pth(tmp_path / "in.pth")
    assert main(["import", str(tmp_path / "in.pth"), str(tmp_path / "run")]) == 0
    path = tmp_path / "run" / "config.json"
    fields = json.loads(path.read_text())
    fields["model"]["head"] = "zero"
    path.write_text(json.dumps(fields))
    config = config_lib.load(path)
    with Checkpoints(tmp_path / "run" / "checkpoints") as folder:
        state = checkpoints.fresh_state(config)
        folder.save("best", 400, state.replace(step=state.step + 400))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.pth")]) == 0
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    assert again["classifier_state_dict"]["linear.weight"].shape == (3, 200)
    assert not any(value.any() for value in again["classifier_state_dict"].values())
    assert again["training"]["epoch"] == 2


FOLDER = os.environ.get("MAML_JAX_GOLDEN")


@pytest.mark.skipif(not FOLDER, reason="MAML_JAX_GOLDEN names no folder of golden cases")
def test_the_originals_checkpoint_gives_the_originals_logits(tmp_path):
    assert main(["import", str(Path(FOLDER) / "reference_checkpoint.pth"), str(tmp_path / "run")]) == 0
    config = config_lib.load(tmp_path / "run" / "config.json")
    with Checkpoints(tmp_path / "run" / "checkpoints") as folder:
        state = folder.restore("best", checkpoints.fresh_state(config))
    case = golden_file.read_case(Path(FOLDER) / "convnet4_reproduce.npz")
    episodes = replay.episodes_of(dataclasses.replace(case, dtype="float32"))
    method = build_method(config, 5)

    def logits(episode):
        return evaluate_task(method, state.params, state.stats, episode, config.eval.steps).logits

    actual = jax.jit(lambda e: jax.lax.map(logits, e))(episodes)
    assert config.eval.steps == case.eval_n_step
    assert golden.relative_error(actual, case.recorded["logits_eval"]) < 1e-4
