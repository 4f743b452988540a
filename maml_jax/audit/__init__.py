"""How far the figure of one trained model can be trusted: one report, all of whose rows are of the same tasks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maml_jax.audit import plots, report, summary
from maml_jax.audit.measures import Arrays, Measurement, measurements
from maml_jax.audit.provenance import duplicates, provenance
from maml_jax.audit.subject import Subject
from maml_jax.data.store import ClassStore
from maml_jax.files import make_folder, to_json, write_whole
from maml_jax.progress import say

__all__ = ["Subject", "audit", "measurements"]

FOLDER = "audit"
_KEPT = "measures"


def audit(
    subject: Subject, protocol: Mapping[str, Any], stores: Mapping[str, ClassStore], folder: Path
) -> dict[str, dict[str, Any]]:
    """Measures a model, and writes `report.md`, `report.json` and pictures.

    What is measured is kept in `measures/`, each with the protocol that it belongs to, and not measured again.

    Args:
      subject: the model.
      protocol: all that the figures depend on.
      stores: the images by split; none if tasks are not made of images.
      folder: where to write.

    Returns:
      The objects of `report.json`, by measure. The audit has failed if that of 'leak_certificate' has not `passed`.
    """
    kept = folder / _KEPT
    make_folder(kept)
    known = json.loads(to_json(protocol))  # as it will be read again
    tested = protocol["split"]
    todo = measurements(subject, stores.get(tested))
    if stores:
        todo.append(Measurement("duplicates", "the same images", lambda label: _duplicates(stores, tested, label)))
    figures: dict[str, Arrays] = {}
    for number, measurement in enumerate(todo, 1):
        found = _kept(kept, measurement.name, known)
        if found is None:
            label = f"audit {number} of {len(todo)}, {measurement.title}"
            say(label)
            found = measurement.run(label)
            _keep(kept, measurement.name, known, found)
        figures[measurement.name] = found
    shared = json.loads(str(figures["duplicates"]["found"])) if stores else None
    measures = summary.summarise(subject, figures) | {"provenance": provenance(protocol, stores, shared)}
    write_whole(folder / "report.json", lambda file: file.write(to_json(measures).encode()))
    plots.draw(subject, figures, measures, folder)
    write_whole(folder / "report.md", lambda file: file.write(report.in_words(measures).encode()))
    return measures


def _duplicates(stores, tested, label):
    return {"found": np.array(json.dumps(duplicates(stores, tested, label)))}


def _kept(folder: Path, name: str, protocol: dict[str, Any]) -> Arrays | None:
    """What was measured before under the same protocol; None if nothing was, or it cannot be read."""
    try:
        if json.loads((folder / f"{name}.json").read_text()) != protocol:
            return None
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError):
        return None


def _keep(folder: Path, name: str, protocol: dict[str, Any], arrays: Arrays) -> None:
    (folder / f"{name}.json").unlink(missing_ok=True)  # of what was measured under another protocol
    write_whole(folder / f"{name}.npz", lambda file: np.savez_compressed(file, **arrays))
    write_whole(folder / f"{name}.json", lambda file: file.write(to_json(protocol).encode()))
