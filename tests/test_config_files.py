"""Configurations as files: presets, files of the user's own, stored ones, and what may change when a run goes on."""

import re
from pathlib import Path

import ml_collections
import pytest

from maml_jax import config as config_lib
from maml_jax.config import describe, rules
from maml_jax.config.fields import BY_NAME, default_of
from maml_jax.errors import ConfigError
from tests.helpers import ROOT
from tests.test_config import OLD, assigned, changed


def test_a_configuration_that_lacks_fields_or_has_others():
    with pytest.raises(ConfigError, match=r"lacks .*preset\(\"default\"\)"):
        config_lib.check(ml_collections.ConfigDict({"data": {"name": "glyphs"}}))
    config = config_lib.default()
    with config.unlocked():
        config.inner.stepz = 3
    with pytest.raises(ConfigError, match=r"no field 'inner\.stepz'; did you mean inner\.steps"):
        config_lib.check(config)


@pytest.mark.parametrize("name", config_lib.preset_names())
def test_presets(name):
    config = config_lib.preset(name)
    config_lib.check(config)
    assert config.is_locked
    if name != "default":
        assert "python launch.py" in (config_lib.presets() / f"{name}.py").read_text()


def test_presets_that_there_are_none_of():
    with pytest.raises(ConfigError, match=r"'mini_5w1z'; did you mean mini_5w1s"):
        config_lib.preset("mini_5w1z")
    with pytest.raises(ConfigError, match=r"there are aircraft_5w1s, .*tiered_5w5s"):
        config_lib.preset("../x")


def test_annealing_takes_a_share_of_the_run_however_long():
    config = config_lib.preset("omniglot_5w1s_mamlpp")
    config.train.steps = 400
    assert (config.outer.multi_step, config.outer.first_order) == (100, 100)


def test_files_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset = config_lib.presets() / "mini_5w1s.py"
    assert config_lib.find("mini_5w1s") == config_lib.find("configs/mini_5w1s.py") == (preset, [])
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from maml_jax.config import preset\n\ndef get_config(steps='2'):\n"
        "    c = preset('mini_5w1s')\n    c.inner.steps = int(steps)\n    return c\n"
    )
    assert config_lib.from_file(config_lib.find("mine.py")[0]).inner.steps == 2
    path, given = config_lib.find("mine.py:7")
    assert config_lib.from_file(path, *given).inner.steps == 7
    with pytest.raises(ConfigError, match=r"no file mini_5w1s\.py; did you mean --config mini_5w1s\?"):
        config_lib.find("mini_5w1s.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function get_config"),
        ("def get_config(): return 3", "returns int, not a ConfigDict"),
        ("def get_config(:", "line 1|SyntaxError"),
        ("x = {}['key']", "line 1: KeyError: 'key'"),
        ("\n\nx = 1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("raise ModuleNotFoundError('no', name='configs')", "from maml_jax.config import preset"),
        ("from maml_jax.config import preset\npreset('mini')", "there is no configuration 'mini'"),
        (
            "from maml_jax.config import preset\n\ndef get_config():\n    c = preset('default')\n    c.inner.stepz = 3",
            r"line 5: AttributeError: .*stepz",
        ),
    ],
)
def test_files_that_fail_say_where(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.from_file(path)
    assert "\n" not in caught.value.facts


def test_old_configurations_load():
    config = config_lib.load(OLD)
    config_lib.check(config)
    assert config.is_locked
    assert config_lib.changes(config, config_lib.default()) == {}


def test_configurations_survive_storing(tmp_path):
    for name in config_lib.preset_names():
        config = config_lib.preset(name)
        (tmp_path / "config.json").write_text(config_lib.to_json(config))
        assert config_lib.flatten(config_lib.load(tmp_path / "config.json")) == config_lib.flatten(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inner": {"stepz": 3}}', r"config\.json has a field 'inner\.stepz'.*a later one wrote it"),
        ('{"inner": 3}', r"'inner'"),
        ('{"inner": {"steps": "3"}}', r"config\.json: inner\.steps='3' must be of type int"),
        ('{"outer": {"rate": NaN}}', r"config\.json: outer\.rate=nan must be a finite number"),
        ("[]", "cannot read the configuration"),
        ("3", "cannot read the configuration"),
        ('{"inner', "cannot read the configuration"),
        ("[" * 100_000, "cannot read the configuration"),
    ],
)
def test_stored_configurations_that_are_damaged(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_lib.load(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        config_lib.load(tmp_path / "none.json")


def other(name):
    """A value that a field could have in place of its default."""
    value = default_of(name)
    choices = [choice for choice in BY_NAME[name].rule.choices if choice != value]
    if isinstance(value, str):
        return choices[0] if choices else "x"
    return {bool: not value, tuple: (7,)}.get(type(value)) if isinstance(value, bool | tuple) else value + 1


@pytest.mark.parametrize("name", BY_NAME)
def test_what_may_change_when_a_run_goes_on(name):
    stored, config = config_lib.default(), config_lib.default()
    assigned(config, name, other(name))
    if BY_NAME[name].free:
        config_lib.check_same_run(config, stored, Path("run"))
        return
    with pytest.raises(ConfigError) as caught:
        config_lib.check_same_run(config, stored, Path("run"))
    assert f"({name} {default_of(name)!r} -> {other(name)!r}" in caught.value.facts
    assert caught.value.settings[name] == default_of(name)


FREE = [
    "debug",
    "data.dir",
    "data.download",
    "data.cache_dir",
    "data.placement",
    "data.device_share",
    "outer.rate",
    "outer.schedule",
    "outer.milestones",
    "outer.factor",
    "outer.period",
    "train.steps",
    "train.on_nonfinite",
    "train.report_every",
    "train.validate_every",
    "train.validation_tasks",
    "train.keep",
    "train.checkpoint_every",
]


def test_nothing_else_may_change():
    free = [name for name, field in BY_NAME.items() if field.free]
    assert [name for name in free if not name.startswith(("parallel.", "eval."))] == FREE
    assert all(BY_NAME[name].free for name in BY_NAME if name.startswith(("parallel.", "eval.")))


def test_a_cosine_that_is_under_way_keeps_its_length():
    stored, config = changed(outer__schedule="cosine"), changed(outer__schedule="cosine", train__steps=5)
    with pytest.raises(ConfigError, match=r"run holds a run with other settings \(train\.steps 10000 -> 5\)"):
        config_lib.check_same_run(config, stored, Path("run"))
    config_lib.check_same_run(changed(train__steps=5), stored, Path("run"))


def test_help_and_readme_list_every_field():
    readme = (ROOT / "configs" / "README.md").read_text()
    assert describe.up_to_date(readme) == readme, "run python -m maml_jax.config.describe configs/README.md"
    for name in BY_NAME:
        assert re.search(rf"^  {re.escape(name)} ", describe.help_text(), re.MULTILINE)
        assert f"| `{name}` |" in readme
    assert max(map(len, describe.help_text().splitlines())) <= 120


def test_options():
    assert rules.options("") == {}
    assert rules.options("blocks=3, act=gelu, shape=(1, 2), name='a, b', on=True") == {
        "blocks": 3,
        "act": "gelu",
        "shape": (1, 2),
        "name": "a, b",
        "on": True,
    }
    for text in (
        "3",
        "a=",
        "a=f()",
        "a=1)",
        "a=1)(b=2",
        "**a",
        "*a",
        "a=1, a=2",
        "a=x.y",
        "\0",
        "a=" + "(" * 300,
        "a=1\nb=2",
    ):
        with pytest.raises(ValueError, match="not options"):
            rules.options(text)
