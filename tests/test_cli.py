"""The command line as a user meets it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maml_jax import cli, train
from maml_jax.config import preset_names
from maml_jax.errors import ConfigError, DataError
from tests.helpers import ROOT, TINY


def test_train_evaluate_resume(launch, tmp_path):
    workdir = tmp_path / "run"
    status, out, err = launch("--workdir", workdir, *TINY)
    assert status == 0
    accuracy = re.fullmatch(r"test accuracy (\d+\.\d+)% ± (\d+\.\d+)% over 30 tasks, 5-way 1-shot.*\n", out)
    report = json.loads((workdir / "eval.json").read_text())
    tasks = np.load(workdir / "eval_tasks.npz")
    assert report["n_tasks"] == len(tasks["accuracies"]) == 30
    np.testing.assert_allclose(report["accuracy"], tasks["accuracies"].mean(), rtol=1e-6)
    assert f"{report['accuracy']:.2%}" == f"{accuracy[1]}%"
    assert report["protocol"] == {
        "data": "glyphs",
        "split": "test",
        "way": 5,
        "shot": 1,
        "query": 2,
        "inner_steps": 1,
        "augment": "none",
        "normalize": "none",
        "norm": "batch",
        "head": "meta",
        "trained_head": "meta",
        "rate_factor": 1.0,
        "transductive": True,
        "checkpoint": "best",
        "step": report["protocol"]["step"],
        "seed": 0,
    }
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["width"] == 2
    assert config["eval"]["way"] == 5
    assert re.search(r"step +2 / 4 +loss", err)
    assert list((workdir / "tensorboard").iterdir())

    status, out, err = launch("evaluate", "--workdir", workdir, "--config.eval.tasks=10", "--config.eval.split=val")
    assert status == 0
    assert out.startswith("val accuracy")
    assert json.loads((workdir / "eval.json").read_text())["n_tasks"] == 10

    status, _, err = launch(
        "--workdir",
        workdir,
        *TINY,
        "--config.train.steps=6",
        "--config.outer.rate=2e-3",
        "--config.train.report_every=1",
    )
    assert status == 0
    assert "continuing at meta-step 4 of 6" in err

    status, _, err = launch("--workdir", workdir, *TINY, "--config.inner.steps=3")
    assert status == 2
    assert "inner.steps 1 -> 3" in err
    assert "another --workdir" in err


@pytest.mark.slow
def test_larger_stored_images_on_the_host(launch, tmp_path):
    """Training crops them, evaluation takes their middle, and the model sees the size asked for."""
    status, out, err = launch(
        "--workdir",
        tmp_path / "run",
        *TINY,
        "--config.data.placement=host",
        "--config.data.stored_size=20",
        "--config.data.support_augment=resize",
        "--config.data.query_augment=color",
        "--config.eval.augment=enlarge",
        "--config.train.validate_every=0",
        "--config.eval.checkpoint=latest",
    )
    assert status == 0
    assert out.startswith("test accuracy")
    assert re.search(r"the train images \(0\.01 GiB\) stay on the host", err)
    assert "the test images" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.inner.stepz=3"], r"no field 'inner\.stepz'; did you mean inner\.steps"),
        (["--config.nothing.like.it=3"], r"no field 'nothing\.like\.it'"),
        (["--config.inner.steps=many"], r"inner\.steps.*'many'.*type int"),
        (["--config.inner.first_order=maybe"], r"inner\.first_order.*type bool"),
        (["--config.inner.steps=-1"], r"inner\.steps=-1 must be at least 0"),
        (["--config.outer.rate=0"], r"outer\.rate=0\.0 must be greater than 0"),
        (["--config.model.encoder=vgg"], r"model\.encoder='vgg' must be one of convnet4"),
        (["--config.model.norm=layer"], r"model\.norm='layer'"),
        (["--config.inner.fixed=norm("], r"inner\.fixed.*regular expression"),
        (["--config.data.name=imagenet"], r"data\.name.*imagenet.*glyphs"),
        (["--config.task.way=201"], r"eval\.way=201.*only 200 classes"),
        (["--config.task.shot=10"], r"eval\.shot=10 and eval\.query=15 take 25 images.*only 20"),
        (["--config.task.query=20"], r"task\.shot=1 and task\.query=20 take 21 images.*only 20"),
        (["--config.eval.way=3"], r"eval\.way=3 differs from task\.way=5.*model\.head=zero"),
        (["--config.inner.optimizer=adam", "--config.inner.momentum=0.9"], r"inner\.momentum=0\.9 is sgd's"),
        (["--config.inner.rates_per_step"], r"inner\.rates_per_step=True is about learned rates.*learn_rates=tensor"),
        (["--config.inner.learn_rates=layer"], r"inner\.learn_rates='layer' must be one of none, group, tensor, elem"),
        (
            ["--config.inner.learn_rates=tensor", "--config.inner.positive_rates", "--config.inner.head_rate=0"],
            r"a rate that starts at 0",
        ),
        (["--config.inner.learn_rates=element", "--config.eval.way=3"], r"eval\.way=3.*learn_rates=tensor"),
        (["--config.model.head=zero", "--config.inner.fixed=head"], r"inner\.fixed='head'.*model\.head=meta"),
        (["--config.outer.multi_step=5", "--config.inner.steps=1"], r"outer\.multi_step.*inner\.steps=1"),
        (["--config.outer.first_order=5", "--config.inner.first_order"], r"inner\.first_order=True stays first order"),
        (["--config.model.norm=per_step", "--config.inner.steps=0"], r"per_step.*inner\.steps=1"),
        (
            ["--config.data.name=sinusoid"],
            r"sinusoid.*regression; use --config\.model\.loss=squared_error --config\.model\.encoder=mlp",
        ),
        (["--config.model.loss=squared_error"], r"model\.loss='squared_error' does not go with data\.name='glyphs'"),
        (
            ["--config.task.way=1", "--config.eval.way=1"],
            r"task\.way=1, eval\.way=1 do not go with data\.name='glyphs'",
        ),
        (["--config.train.tasks_at_once=3"], r"tasks_at_once=3 does not divide train\.tasks=8"),
        (["--config.train.validate_every=0"], r"eval\.checkpoint=latest"),
        (["--config.data.normalize=imagenet"], r"data\.normalize='imagenet'.*3 channels.*have 1.*normalize=none"),
        (["--config.data.normalize=dataset"], r"data\.normalize='dataset'.*'glyphs'.*normalize=none"),
        (["--config.data.stored_size=20"], r"data\.stored_size=20 is smaller than data\.image_size=28.*stored_size="),
        (["--config.data.placement=disk"], r"data\.placement='disk' must be one of device, host, auto"),
        (["--config.data.device_share=0"], r"data\.device_share=0\.0 must be in \(0, 1\]"),
        (["--config.data.query_augment=blur"], r"data\.query_augment='blur' must be one of none, flip, crop"),
        (["--config.eval.augment=color"], r"eval\.augment='color' must be one of none, enlarge"),
        (["--config.outer.rate=nan"], r"outer\.rate=nan must be a finite number"),
        (["--config.model.encoder=resnet_12"], r"use --config\.model\.encoder=resnet12"),
        (["--config.outer.milestones=(1.5,)"], r"outer\.milestones=\(1\.5,\) must be meta-steps"),
        (["--config.parallel.processes=2"], r"parallel\.processes=2.*use --config\.parallel\.coordinator=HOST:1234"),
        (["--config", "nowhere.py"], r"no file nowhere\.py"),
        (["--config", "mini_5w1z"], r"no configuration 'mini_5w1z'; did you mean mini_5w1s"),
        (["train", "--check"], r"--check goes with prepare"),
        (["train", "evaluate"], r"'train evaluate'.*train, evaluate, prepare"),
        (["--wrkdir", "x"], r"wrkdir.*workdir"),
        (["--check=perhaps"], r"flag --check=perhaps.*"),
        (["tain"], r"'tain'.*train, evaluate, prepare"),
        (["evaluate", "--workdir", "nowhere"], r"nowhere holds no run"),
    ],
)
def test_mistakes_are_one_clear_line(launch, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("training began"))
    status, out, err = launch(*arguments)
    assert status == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.parametrize(
    "name",
    [f"{name}_5w1s" for name in ("omniglot", "mini", "tiered", "cifarfs", "fc100", "cub", "inat", "cars", "flowers")],
)
def test_missing_data_is_one_clear_error(launch, tmp_path, cache, name):
    stores = lambda: sorted(path.name for path in (cache / "stores").glob(f"*{name.split('_')[0]}*"))  # noqa: E731
    before = stores()
    status, _, err = launch("--config", ROOT / "configs" / f"{name}.py")
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path / "datasets") in err
    assert "https://" in err
    assert "--config.data.dir=FOLDER" in err
    assert list(tmp_path.iterdir()) == []
    assert stores() == before


@pytest.mark.parametrize(
    "arguments",
    [
        "--config.eval.way=3",
        "--config.eval.way=3 --config.inner.learn_rates=element",
        "--config.data.name=sinusoid",
        "--config.task.way=1",
        "--config.train.validate_every=0",
        "--config.model.norm=per_step --config.inner.steps=0",
        "--config.inner.optimizer=adam --config.inner.momentum=0.5",
        "--config sinusoid --config.eval.checkpoint=best",
        "--config mini_5w1s --config.data.stored_size=20",
    ],
)
def test_the_flags_that_an_error_proposes_are_accepted(capsys, arguments):
    command = shlex.split(arguments)
    for _ in range(5):
        try:
            cli.parse(command)
            break
        except ConfigError as error:
            command += shlex.split(cli._in_one_line(error).partition("; use ")[2])
    else:
        pytest.fail(f"still refused: {command}")
    assert len(command) > len(shlex.split(arguments))


def test_flags_are_as_a_shell_takes_them():
    assert cli.as_flag("inner.steps", 3) == "--config.inner.steps=3"
    for value in ((1, 2), "block1=global, batch", "norm$|'", ""):
        (flag,) = shlex.split(cli.as_flag("x.y", value))
        assert flag == f"--config.x.y={value}"


def test_messages_hold_no_control_characters(capsys, monkeypatch):
    def fail(*_):
        raise DataError("bad\nname\x1b[2J", {"data.dir": "a\rb"})

    monkeypatch.setattr(cli, "parse", fail)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "error: bad?name?[2J; use --config.data.dir='a?b'\n"


@pytest.mark.parametrize("name", preset_names())
def test_configurations_by_name_and_by_path(name):
    requests = [cli.parse(["--config", text]) for text in (name, str(ROOT / "configs" / f"{name}.py"))]
    for request in requests:
        assert (request.verb, request.workdir, request.check) == ("train", Path("runs") / name, False)
        assert request.config.is_locked
    assert requests[0].config.to_json() == requests[1].config.to_json()


def test_arguments_in_any_order_and_spelling():
    """As absl and ml_collections have them."""
    request = cli.parse(
        shlex.split(
            "-config.inner.steps 3 --config.inner.first_order evaluate --noconfig.data.download "
            "--config.outer.milestones='(1, 2)' --config=mini_5w1s --config.task.way=7 -workdir=somewhere"
        )
    )
    c = request.config
    assert (c.data.name, c.inner.steps, c.inner.first_order, c.data.download) == ("mini_imagenet", 3, True, False)
    assert (c.outer.milestones, c.task.way, c.eval.way) == ((1, 2), 7, 7)
    assert (request.verb, request.workdir) == ("evaluate", Path("somewhere"))
    annealed = cli.parse(["--config", "mini_5w1s_mamlpp", "--config.train.steps=400"]).config
    assert annealed.outer.multi_step == 100


def test_evaluate_takes_the_settings_of_the_run_and_changes_some(tmp_path):
    """A run of the version before the table, too."""
    stored = json.loads((Path(__file__).parent / "old" / "config.json").read_text())
    stored["task"]["shot"] = 3
    (tmp_path / "config.json").write_text(json.dumps(stored))
    request = cli.parse(["evaluate", "--workdir", str(tmp_path), "--config.eval.tasks=10"])
    assert request.file is None
    assert (request.config.task.shot, request.config.eval.shot, request.config.eval.tasks) == (3, 1, 10)
    assert cli.parse(["evaluate", "--workdir", str(tmp_path), "--config", "mini_5w1s"]).config.task.shot == 1
    (tmp_path / "config.json").write_text('{"inner": {"later": 1}}')
    with pytest.raises(ConfigError, match=r"a field 'inner\.later'"):
        cli.parse(["evaluate", "--workdir", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("--help", 141), ("--version", 141), ("predict --help", 0), ("nothing", 2)],  # argparse passes over what is gone
)
def test_an_output_that_nobody_reads_to_its_end(tmp_path, arguments, status):
    """As with `maml-jax --help | head -1`: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as gone:
        command = [sys.executable, ROOT / "launch.py", *arguments.split()]
        ended = subprocess.run(command, cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr
