"""The verb `reproduce`: what it takes to stand a figure of ours beside a published one."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maml_jax import cli, commands
from maml_jax.compare import norms
from maml_jax.config import Config
from maml_jax.errors import ConfigError
from maml_jax.files import to_json, write_whole
from maml_jax.metrics import read_metrics
from maml_jax.models.arguments import Parser
from maml_jax.models.card import commit
from maml_jax.progress import say

_ABOUT = """\
Trains a configuration whose accuracy is published, or goes on with that, evaluates it by the published protocol and by
others, and prints a row of a table:

  maml-jax reproduce cifarfs_5w1s --config.data.dir=FOLDER --seeds 3

Fields may be set as usual. What is measured is kept in reproduce.json of the work directory."""


class Published(NamedTuple):
    """A published accuracy, in per cent.

    Attributes:
      accuracy: with its interval, as published.
      source: who reports it.
    """

    accuracy: str
    source: str


_FINN = "Finn et al. 2017"
_BERTINETTO = "Bertinetto et al. 2019"
_PADDLE = "PaddleFSL, first order"
PUBLISHED = {
    "omniglot_5w1s": Published("98.7 ± 0.4", _FINN),
    "omniglot_5w1s_fast": Published("98.7 ± 0.4", _FINN),
    "omniglot_5w5s": Published("99.9 ± 0.1", _FINN),
    "omniglot_20w1s": Published("95.8 ± 0.3", _FINN),
    "omniglot_20w5s": Published("98.9 ± 0.2", _FINN),
    "mini_5w1s": Published("48.70 ± 1.84", _FINN),
    "mini_5w5s": Published("63.11 ± 0.92", _FINN),
    "cifarfs_5w1s": Published("58.9 ± 1.9", _BERTINETTO),
    "cifarfs_5w1s_paper": Published("58.9 ± 1.9", _BERTINETTO),
    "cifarfs_5w5s": Published("71.5 ± 1.0", _BERTINETTO),
    "cifarfs_5w1s_protonet": Published("55.5 ± 0.7", _BERTINETTO),
    "cifarfs_5w1s_fomaml": Published("57.1", "PaddleFSL"),
    "cifarfs_5w1s_anil": Published("56.2", "PaddleFSL"),
    "cifarfs_5w1s_boil": Published("58.0", "Oh et al. 2021"),
    "fc100_5w1s": Published("37.6", _PADDLE),
    "fc100_5w5s": Published("49.1", _PADDLE),
}
"""By the names of configurations."""

_PROTOCOLS = {
    "published": "by its protocol",
    "fifteen": "15 queries, steps as trained",
    "inductive": "the same, inductive",
}


def main(arguments: Sequence[str]) -> int:
    """The verb `reproduce`."""
    parser = Parser("reproduce", _ABOUT)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    parser.add_argument("--workdir", type=Path, help="default: runs/NAME; other seeds beside it, as NAME-seed1")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from 0 (default: 1)")
    given, rest = parser.parse_known_args(arguments)
    if given.name not in PUBLISHED:
        raise ConfigError(f"no figure is known for {given.name!r}; there are {', '.join(PUBLISHED)}")
    if given.seeds < 1:
        raise ConfigError(f"--seeds={given.seeds} must be at least 1")
    rows = []
    for seed in range(given.seeds):
        folder = given.workdir or Path("runs") / given.name
        folder = folder.with_name(f"{folder.name}-seed{seed}") if seed else folder
        own = [f"--config.seed={seed}"] if given.seeds > 1 else []
        request = cli.parse(["--config", given.name, "--workdir", str(folder), *rest, *own])
        rows.append(_measured(given.name, request.config, request.workdir))
    print(table(rows), end="")
    return 0


def _measured(name: str, config: Config, folder: Path) -> dict[str, Any]:
    """Trains and evaluates; the row."""
    commands.train(config, folder)
    found = {}
    for protocol, changed in protocols(config).items():
        say(f"{name}: {_PROTOCOLS[protocol]}")
        result = commands.evaluate(changed, folder)
        facts = {"query": changed.eval.query, "steps": changed.eval.steps, "norm": changed.model.norm}
        found[protocol] = {"accuracy": result.accuracy, "ci95": result.ci95, "tasks": changed.eval.tasks, **facts}
    row = {
        "name": name,
        "published": PUBLISHED[name]._asdict(),
        "seed": config.seed,
        "measured": found,
        "meta_steps": config.train.steps,
        "tasks_seen": config.train.steps * config.train.tasks,
        "training_seconds": training_seconds(folder, config.train.tasks),
        "hardware": hardware(),
        "commit": commit(),
    }
    write_whole(folder / "reproduce.json", lambda file: file.write(to_json(row).encode()))
    return row


def protocols(config: Config) -> dict[str, Config]:
    """What a configuration is evaluated under, by the names of the table's columns."""
    fifteen = config.copy_and_resolve_references()
    fifteen.eval.query, fifteen.eval.steps = 15, config.inner.steps
    inductive = fifteen.copy_and_resolve_references()
    inductive.model.norm = norms(config.model.norm).get("inductive", "")
    return {"published": config, "fifteen": fifteen} | ({"inductive": inductive} if inductive.model.norm else {})


def training_seconds(folder: Path, tasks: int) -> float:
    """How long the meta-steps took, by the speeds in `metrics.jsonl`: without compilation, validation and breaks."""
    seconds = before = 0
    for entry in read_metrics(folder):
        if entry["split"] == "train":
            seconds += (entry["step"] - before) * tasks / entry["tasks_per_second"]
            before = entry["step"]
    return seconds


def hardware() -> str:
    """The devices, such as '2 × NVIDIA H100' or '1 CPU device (AMD EPYC)'."""
    count, kind = len(jax.devices()), jax.devices()[0].device_kind
    if kind != "cpu":
        return f"{count} × {kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{count} CPU device{'s' * (count > 1)} ({next(named, platform.processor() or platform.machine())})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, and their mean if there are several: over seeds, with the deviation from seed to seed."""
    lines = [
        f"| configuration | published | {' | '.join(_PROTOCOLS.values())} | trained for |",
        f"| --- | --- | {' | '.join('---' for _ in _PROTOCOLS)} | --- |",
    ]
    for row in rows:
        p, seconds = row["published"], row["training_seconds"]
        cells = [f"{100 * m['accuracy']:.2f} ± {100 * m['ci95']:.2f}" for m in row["measured"].values()]
        spent = f"{row['tasks_seen']:,} tasks, {seconds / 3600:.1f} h on {row['hardware']}"
        lines.append(
            f"| `{row['name']}`, seed {row['seed']} | {p['accuracy']} ({p['source']}) | {' | '.join(cells)} | {spent} |"
        )
    if len(rows) > 1:
        every = np.array([[100 * m["accuracy"] for m in row["measured"].values()] for row in rows])
        cells = [f"{m:.2f} (seeds ± {d:.2f})" for m, d in zip(every.mean(0), every.std(0, ddof=1), strict=True)]
        lines.append(f"| mean of {len(rows)} seeds | | {' | '.join(cells)} | |")
    return "\n".join(lines) + "\n"
