"""One table of all methods: the same tasks, the same number of meta-steps, the same test tasks."""

import json
from collections.abc import Callable
from pathlib import Path

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
}
"""By what their configurations' names end with."""


def compare(base: Path, workdir: Path, launch: Callable[..., int]) -> int:
    """Trains each method, or goes on where it was, and evaluates it on the same tasks in two ways.

    Transductive: query images are normalised together. Inductive: as the method has it, or else by the moments of the
    support set (`metabn`), a change at test only. Writes `compare.json` and `compare.md` after each method.

    Args:
      base: the configuration of MAML itself; the others' names begin with its.
      workdir: with a folder for each method.
      launch: the command line: (verb, configuration, folder, more arguments) -> exit status.

    Returns:
      The exit status.

    Raises:
      ConfigError: a method has no configuration.
    """
    files = {method: base.with_name("_".join(filter(None, (base.stem, method))) + ".py") for method in METHODS}
    for file in files.values():
        if not file.exists():
            raise ConfigError(f"compare needs {file}; give the configuration of MAML, such as omniglot_5w1s.py")
    rows = []
    for method, file in files.items():
        folder = workdir / (method or "maml")
        say(f"{METHODS[method]}: {file}")
        status = launch("train", file, folder)
        if status:
            return status
        own = json.loads((folder / "config.json").read_text())["model"]["norm"]
        row = {"method": METHODS[method], "norm": own}
        for kind, norm in _norms(own).items():
            status = launch("evaluate", file, folder, f"--config.model.norm={norm}")
            if status:
                return status
            report = json.loads((folder / "eval.json").read_text())
            row[kind] = {"norm": norm, **{name: report[name] for name in ("accuracy", "ci95", "n_tasks", "protocol")}}
        rows.append(row)
        write_whole(workdir / "compare.json", lambda f: f.write((json.dumps(rows, indent=2) + "\n").encode()))
        write_whole(workdir / "compare.md", lambda f: f.write(table(rows).encode()))
    print(table(rows), end="")
    return 0


def _norms(own: str) -> dict[str, str]:
    """Modes to evaluate a model by that was trained in mode `own`."""
    if own.startswith("per_step"):
        return {"transductive": "per_step_batch", "inductive": "per_step"}
    return {"transductive": "batch", "inductive": "metabn" if own == "batch" else own}


def table(rows: list[dict]) -> str:
    """The accuracies in Markdown, with their intervals."""

    def cell(row, kind):
        return f"{row[kind]['accuracy']:.2%} ± {row[kind]['ci95']:.2%} (`{row[kind]['norm']}`)"

    lines = ["| method | transductive | inductive |", "| --- | --- | --- |"]
    lines += [f"| {row['method']} | {cell(row, 'transductive')} | {cell(row, 'inductive')} |" for row in rows]
    return "\n".join(lines) + "\n"
