"""Checkpoints: several are kept, and whatever happens to their files is noticed."""

import shutil

import numpy as np
import pytest

from maml_jax import train
from maml_jax.checkpoint import Checkpoints
from maml_jax.errors import DataError
from tests.helpers import assert_same, experiment

DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "lost": None,
}


def damage(path, how):
    changed = DAMAGES[how] and DAMAGES[how](path.read_bytes())
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with the states of its latest two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    train.train(experiment(), folder)
    return folder


def arrays(workdir, kind="latest"):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.read(kind)


def test_so_many_are_kept(tmp_path):
    train.train(experiment(keep=3, checkpoint_every=2), tmp_path)
    assert {entry.name for entry in (tmp_path / "checkpoints" / "latest").iterdir()} == {"8", "10", "12"}


def files_of(workdir, kind):
    folder = max((workdir / "checkpoints" / kind).iterdir(), key=lambda entry: int(entry.name))
    return [path.relative_to(workdir) for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_is_noticed_and_the_checkpoint_before_taken(run, tmp_path, how, capsys):
    """Never is a wrong model read in silence: what is read is the checkpoint before, or nothing."""
    files = files_of(run, "latest")
    assert len(files) > 8
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        damage(copy / file, how)
        state, path = arrays(copy)
        assert path.name == "10", file
        assert state["step"] == 10
        assert "warning" in capsys.readouterr().err
        shutil.rmtree(copy)


def test_a_damaged_best_one_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run" / files_of(run, "best")[-1], "flipped")
    with pytest.raises(DataError, match=r"is damaged.*eval\.checkpoint=latest"):
        arrays(tmp_path / "run", "best")


def test_training_goes_on_from_the_one_before_and_ends_the_same(run, tmp_path, capsys):
    """A run that is at its end takes the steps again that the damaged one had taken."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    damage(copy / files_of(run, "latest")[0], "zeroed")
    state = train.train(experiment(), copy)
    said = capsys.readouterr().err
    assert "is set aside" in said
    assert "continuing at meta-step 10 of 12" in said
    for name, leaf in arrays(run)[0].items():
        np.testing.assert_array_equal(arrays(copy)[0][name], leaf)
    assert int(state.step) == 12
    assert (copy / "checkpoints" / "damaged" / "latest-12").is_dir()


def test_if_none_is_sound_training_does_not_begin_anew(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints" / "latest").iterdir():
        damage(folder / "_CHECKPOINT_METADATA", "flipped")
    with pytest.raises(DataError, match=r"12 is damaged: _CHECKPOINT_METADATA .* no other is sound"):
        train.train(experiment(), copy)
    assert len(list((copy / "checkpoints" / "latest").iterdir())) == 2


def test_checkpoints_without_sums_are_read_if_they_are_of_an_earlier_version(run, tmp_path):
    """Killed between a checkpoint and its sums, there is no telling that it is whole."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "latest" / "12" / "sha256.json").unlink()
    assert arrays(copy)[1].name == "10"
    (copy / "checkpoints" / "latest" / "10" / "sha256.json").unlink()
    assert arrays(copy)[1].name == "12", "if there is no better one"
    facts = copy / "checkpoints" / "latest" / "12" / "facts" / "metadata"
    facts.write_text("{}")
    state, path = arrays(copy)
    assert path.name == "12"
    assert_same({"step": state["step"]}, {"step": arrays(run)[0]["step"]})


def test_a_kind_of_checkpoint_that_there_is_not(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"kind must be one of .*got 'first'"):
        checkpoints.save("first", 1, {"step": np.int32(1)})


def test_the_only_sound_one_may_lack_its_sums(run, tmp_path, capsys):
    """Killed between a checkpoint and its sums, with the one before damaged: training goes on from it."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    latest = copy / "checkpoints" / "latest"
    (latest / "12" / "sha256.json").unlink()
    damage(latest / "10" / "_CHECKPOINT_METADATA", "flipped")
    with Checkpoints(copy / "checkpoints") as checkpoints:
        checkpoints.facts("best")  # has Orbax look at what there is
        checkpoints.set_damaged_aside()
        assert checkpoints.latest_step("latest") == 12
    assert "10 is damaged" in capsys.readouterr().err
    assert (latest / "12" / "sha256.json").exists()
    assert [path.name for path in (copy / "checkpoints" / "damaged").iterdir()] == ["latest-10"]
    assert_same(arrays(copy)[0], arrays(run)[0], 0)


@pytest.mark.parametrize("part", ["facts", "state"])
def test_damage_without_sums_to_tell_it_is_an_error(run, tmp_path, part):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for step in (copy / "checkpoints" / "latest").iterdir():
        (step / "sha256.json").unlink()
        shutil.rmtree(step / part)
    with pytest.raises(DataError, match=r"cannot read the checkpoint .*/latest/12: "):
        arrays(copy)
