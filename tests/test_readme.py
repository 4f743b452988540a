"""READMEs and configurations: their code runs as printed, their commands are understood, their links lead on."""

import re
import shlex

import pytest

from maml_jax import cli
from tests.helpers import ROOT

_NOT_OURS = {".venv", "build", "shipped"}
PAGES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.md") if not _NOT_OURS & set(path.parts))
CODE = [
    pytest.param(block, id=f"{page}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


def commands():
    """Every command line of ours that is printed somewhere, without comments."""
    texts = [(ROOT / page).read_text() for page in PAGES] + [p.read_text() for p in (ROOT / "configs").glob("*.py")]
    for text in texts:
        for line in re.findall(r"(?:^|`|&& )(?: {4})?(?:python launch\.py|maml-jax) ?(.*?)(?:`|$)", text, re.MULTILINE):
            yield line.split("  #")[0].strip()


@pytest.mark.parametrize("block", CODE)
def test_code_runs_as_printed(block, cache, monkeypatch):
    monkeypatch.setenv("MAML_JAX_CACHE", str(cache))
    exec(compile(block, "README", "exec"), {"__name__": "readme"})


def test_commands_are_understood():
    seen = 0
    for command in commands():
        words = [word for word in shlex.split(command) if word not in ("...", "|")]
        if (
            not words
            or words[0] in ("evaluate", "audit", "export", "predict", "reproduce", "replay")
            or any(word.isupper() and "=" not in word for word in words)
        ):
            continue
        if {"-h", "--help", "--version"} & set(words):
            continue
        cli.parse(words)
        seen += 1
    assert seen > 20


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
