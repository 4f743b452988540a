"""One table of all methods: the same tasks, the same number of meta-steps, the same test tasks."""

import json
from collections.abc import Mapping
from pathlib import Path

from maml_jax import commands
from maml_jax.config import Config
from maml_jax.errors import ConfigError
from maml_jax.files import write_whole
from maml_jax.progress import say

METHODS = {
    "": "MAML",
    "fomaml": "FOMAML",
    "anil": "ANIL",
    "boil": "BOIL",
    "metasgd": "Meta-SGD",
    "mamlpp": "MAML++",
    "tasknorm": "TaskNorm-I",
    "unicorn": "UNICORN-MAML",
    "protomaml": "Proto-MAML",
    "protonet": "ProtoNet",
    "reptile": "Reptile",
    "imaml": "iMAML",
    "curvature": "Meta-Curvature",
    "tnet": "T-net",
    "cavia": "CAVIA",
}
"""By what their configurations' names end with."""


def files(base: Path) -> dict[str, Path]:
    """The configuration of MAML, and of each method that has one beside it.

    Raises:
      ConfigError: no method has.
    """
    named = {suffix: base.with_stem("_".join(filter(None, (base.stem, suffix)))) for suffix in METHODS}
    found = {suffix: file for suffix, file in named.items() if file.exists()}
    if len(found) < 2:
        others = ", ".join(file.name for suffix, file in named.items() if suffix)
        raise ConfigError(
            f"compare finds no method's configuration beside {base}, which would be any of {others}; give the "
            "configuration of MAML, such as --config omniglot_5w1s"
        )
    return found


def compare(configs: Mapping[str, Config], workdir: Path) -> None:
    """Trains each method, or goes on where it was, and evaluates it on the same tasks in two ways.

    Transductive: query images are normalised together. Inductive: as the method has it, or else by the moments of the
    support set (`metabn`), a change at test only. Writes `compare.json` and `compare.md` after each method.

    Args:
      configs: of each method, by the keys of `METHODS`.
      workdir: with a folder for each method.
    """
    rows = []
    for suffix, config in configs.items():
        folder = workdir / (suffix or "maml")
        say(f"{METHODS[suffix]}: {folder}")
        commands.train(config, folder)
        reports = {config.model.norm: _latest(folder)}
        row = {"method": METHODS[suffix], "norm": config.model.norm}
        for kind, norm in norms(config.model.norm).items():
            if norm not in reports:
                changed = config.copy_and_resolve_references()
                changed.model.norm = norm
                commands.evaluate(changed, folder)
                reports[norm] = _latest(folder)
            row[kind] = {"norm": norm, **reports[norm]}
        rows.append(row)
        write_whole(workdir / "compare.json", lambda f: f.write((json.dumps(rows, indent=2) + "\n").encode()))
        write_whole(workdir / "compare.md", lambda f: f.write(table(rows).encode()))
    print(table(rows), end="")


def _latest(folder: Path) -> dict:
    """What the latest evaluation found, as far as the table needs it."""
    report = json.loads((folder / "eval.json").read_text())
    return {name: report[name] for name in ("accuracy", "ci95", "n_tasks", "protocol")}


def norms(own: str) -> dict[str, str]:
    """Modes to evaluate a model by that was trained in mode `own`, as far as it has what they need."""
    if own == "per_step_batch":  # with no running statistics
        return {"transductive": own}
    if own == "per_step":
        return {"transductive": "per_step_batch", "inductive": own}
    return {"transductive": "batch", "inductive": "metabn" if own == "batch" else own}


def table(rows: list[dict]) -> str:
    """The accuracies in Markdown, with their intervals."""

    def cell(row, kind):
        if kind not in row:
            return "none"
        return f"{row[kind]['accuracy']:.2%} ± {row[kind]['ci95']:.2%} (`{row[kind]['norm']}`)"

    lines = ["| method | transductive | inductive |", "| --- | --- | --- |"]
    lines += [f"| {row['method']} | {cell(row, 'transductive')} | {cell(row, 'inductive')} |" for row in rows]
    return "\n".join(lines) + "\n"
