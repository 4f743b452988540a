"""The card of an exported model: what it is, where it comes from, and how good it is."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import maml_jax
from maml_jax import results
from maml_jax.config import Config
from maml_jax.data import data_set
from maml_jax.errors import UserError
from maml_jax.nn.starts import STARTS

_TEXT = """\
# {name}

{encoder}, meta-trained by maml-jax to tell {way} classes of images apart after
{inner} gradient step{s} on {shot} image{p} of each.

| what | value |
| --- | --- |
{facts}

## How good it is

{evaluations}

*Inductive*: a prediction depends on the support set and its own image alone. *Transductive*: the query images are
normalised together, and a prediction depends on the others, of which there are as many of each class.

## Use

    maml-jax predict --weights FOLDER --support CLASS_FOLDERS --query PICTURES

```python
import maml_jax

adapted = maml_jax.load("FOLDER").adapt(images, labels)
probabilities, classes = adapted.predict(others)
```
"""


def card(
    name: str,
    workdir: Path,
    config: Config,
    step: int,
    arrays: Mapping[str, np.ndarray],
    sha256: str,
) -> str:
    """The card as Markdown.

    Args:
      name: of the model.
      workdir: of its run, for the evaluations there.
      config: of its training.
      step: meta-steps taken.
      arrays: the weights.
      sha256: of their file.
    """
    c, count = config, sum(array.size for array in arrays.values())
    any_way = STARTS[c.model.head].any_way
    tasks = f"{c.train.tasks} task{'s' * (c.train.tasks != 1)} each"
    facts = {
        "trained on": c.data.name,
        "terms of the data": _terms(c.data.name),
        "images": f"{c.data.image_size} x {c.data.image_size} pixels, normalize={c.data.normalize}",
        "normalisation": c.model.norm,
        "head": f"{c.model.head}, for {'any number of' if any_way else f'up to {c.task.way}'} classes",
        "numbers": f"{count:,}, float32",
        "meta-steps": f"{step:,}, {tasks} ({c.eval.checkpoint} checkpoint)",
        "seed": c.seed,
        "exported by": f"maml-jax {maml_jax.__version__}" + (f", commit {sha}" if (sha := commit()) else ""),
        "SHA-256 of model.safetensors": f"`{sha256}`",
    }
    if c.train.start:
        facts["started from"] = f"the weights of {Path(c.train.start).name}"
    return _TEXT.format(
        name=name,
        encoder=c.model.encoder,
        way=c.task.way,
        shot=c.task.shot,
        inner=c.inner.steps,
        s="" if c.inner.steps == 1 else "s",
        p="" if c.task.shot == 1 else "s",
        facts="\n".join(f"| {what} | {' '.join(str(value).split())} |" for what, value in facts.items()),
        evaluations=_evaluations(workdir, step),
    )


def _terms(name: str) -> str:
    try:
        return data_set(name).terms
    except UserError:
        return f"those of {name}"


def commit() -> str:
    """The commit of the checkout that this is, if it is one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        run = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def _evaluations(workdir: Path, step: int) -> str:
    """A table of what the work directory has, and a line for a protocol that it has not."""
    found = [report for report in results.of_step(workdir, step).values() if report.get("accuracy") is not None]
    lines = results.table(found) if found else []
    for transductive, name in ((False, "Inductive"), (True, "Transductive")):
        if not any(report["protocol"].get("transductive") is transductive for report in found):
            lines += ["", f"{name} accuracy: not measured."]
    return "\n".join(lines).strip()
