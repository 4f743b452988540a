"""The command line as a user meets it."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from maml_jax import cli, train
from maml_jax.config import preset_names
from maml_jax.config.describe import help_text
from maml_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.model.width=2",
    "--config.data.image_size=16",
    "--config.train.steps=4",
    "--config.train.tasks=2",
    "--config.train.report_every=2",
    "--config.train.validate_every=2",
    "--config.train.validation_tasks=5",
    "--config.train.checkpoint_every=2",
    "--config.eval.tasks=30",
    "--config.eval.query=2",
    "--config.eval.steps=1",
    "--config.task.query=2",
]


def _no_network(*_, **__):
    raise urllib.error.URLError("no network in tests")


@pytest.fixture
def launch(cache, monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, from an empty folder; gives status, output and messages."""
    monkeypatch.setenv("MAML_JAX_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", _no_network)

    def run(*arguments):
        status = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


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
    "name", ["omniglot_5w1s", "mini_5w1s", "tiered_5w1s", "cifarfs_5w1s", "fc100_5w1s", "cub_5w1s", "inat_5w1s"]
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


def test_help_and_version(launch):
    status, out, _ = launch("--help")
    assert status == 0
    assert help_text() in out
    status, out, _ = launch("--version")
    assert status == 0
    assert re.fullmatch(r"maml-jax \S+, jax \d+\.\S+, python \d+\.\d+\.\S+\n", out)


def test_help_and_mistakes_are_quick_to_come():
    """They do not wait for what training needs."""
    program = (
        "import sys; from maml_jax import cli; cli.main(['--help']); cli.main(['tain']); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "tensorboardX", "orbax.checkpoint", "matplotlib") if f"'{name}'" in loaded]


def test_prepare(launch):
    status, out, _ = launch("prepare", "--config.data.image_size=16")
    assert status == 0
    assert re.search(r"train +900 classes +18000 images", out)
    assert re.search(r"test +200 classes +4000 images", out)


def test_as_a_process(tmp_path, cache):
    """From another folder, with a configuration of the user's, and with another number of ways at test."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import default\n\ndef get_config():\n    c = default.get_config()\n    c.model.head = 'zero'\n"
        "    return c\n"
    )
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(mine), *TINY, "--config.eval.way=3"]
    environment = {**os.environ, "MAML_JAX_CACHE": str(cache)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3-way 1-shot" in done.stdout
    assert (tmp_path / "runs" / "mine" / "eval.json").exists()


def test_sinusoid(launch, tmp_path):
    workdir = tmp_path / "run"
    arguments = ["--config.train.steps=40", "--config.train.report_every=20", "--config.eval.tasks=7"]
    status, out, err = launch("--config", "sinusoid", "--workdir", workdir, *arguments)
    assert status == 0
    assert re.match(r"test loss \d+\.\d+ ± \d+\.\d+ over 7 tasks, 1-way 10-shot", out)
    assert "accuracy" not in err + out
    report = json.loads((workdir / "eval.json").read_text())
    losses = np.load(workdir / "eval_tasks.npz")["losses_by_step"]
    assert losses.shape == (7, 11)
    assert [row["steps"] for row in report["by_step"]] == list(range(11))
    for row in report["by_step"]:
        np.testing.assert_allclose(row["loss"], losses[:, row["steps"]].mean(), rtol=1e-6)
        assert f"after {row['steps']:>2} steps  loss {row['loss']:.4f} ± {row['loss_ci95']:.4f}" in out
    assert (workdir / "report" / "curves.png").stat().st_size > 10_000


METHODS = {
    "": "",
    "fomaml": "c.inner.first_order = True",
    "anil": "c.inner.fixed = '^encoder'",
    "boil": "c.inner.fixed = '^head'",
    "metasgd": "c.inner.learn_rates = 'element'",
    "mamlpp": "c.model.norm, c.inner.learn_rates = 'per_step', 'tensor'",
    "tasknorm": "c.model.norm = 'tasknorm'",
}


@pytest.mark.slow
def test_compare(launch, tmp_path):
    """Every method is trained, evaluated in two ways, and goes on where it was."""
    for method, change in METHODS.items():
        name = "_".join(filter(None, ("tiny", method)))
        lines = ["from configs import default", "def get_config():", "    c = default.get_config()"]
        lines += [f"    {change or 'pass'}", "    return c"]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
    arguments = ["compare", "--config", tmp_path / "tiny.py", "--workdir", tmp_path / "table", *TINY]
    status, out, _ = launch(*arguments)
    assert status == 0
    assert len(out.splitlines()) >= 2 + len(METHODS)
    rows = json.loads((tmp_path / "table" / "compare.json").read_text())
    assert [row["method"] for row in rows] == ["MAML", "FOMAML", "ANIL", "BOIL", "Meta-SGD", "MAML++", "TaskNorm-I"]
    for row in rows:
        assert row["transductive"]["n_tasks"] == row["inductive"]["n_tasks"] == 30
        assert row["transductive"]["protocol"]["transductive"]
        assert not row["inductive"]["protocol"]["transductive"]
        assert row["transductive"]["protocol"]["step"] == row["inductive"]["protocol"]["step"]
    assert (tmp_path / "table" / "compare.md").read_text() in out
    assert launch(*arguments)[1].endswith((tmp_path / "table" / "compare.md").read_text())


def test_compare_needs_a_configuration_of_each_method(launch, tmp_path):
    status, _, err = launch("compare", "--workdir", tmp_path / "table")
    assert status == 2
    assert "glyphs_5w1s_fomaml.py" in err


def test_normalisation_is_changed_at_test(launch, tmp_path):
    """And what learns rates is trained, resumed and evaluated like anything else."""
    workdir = tmp_path / "run"
    learning = ["--config.inner.learn_rates=tensor", "--config.inner.rates_per_step", "--config.inner.steps=2"]
    assert launch("--workdir", workdir, *TINY, *learning)[0] == 0
    status, _, err = launch("--workdir", workdir, *TINY, *learning, "--config.train.steps=6")
    assert status == 0
    assert "continuing at meta-step 4" in err
    for norm in ("metabn", "tasknorm"):
        assert launch("evaluate", "--workdir", workdir, f"--config.model.norm={norm}")[0] == 0
        protocol = json.loads((workdir / "eval.json").read_text())["protocol"]
        assert protocol["norm"] == norm
        assert not protocol["transductive"]
    status, _, err = launch("evaluate", "--workdir", workdir, "--config.model.norm=global")
    assert status == 2
    assert "encoder/block1/norm/mean" in err
