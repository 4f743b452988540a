"""From what was measured to what is reported: one object per measure, with `value`, `ci95` and `n_tasks`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maml_jax.audit import statistics
from maml_jax.audit.measures import ALPHAS, Arrays, file_name
from maml_jax.audit.statistics import estimate, paired
from maml_jax.audit.subject import Subject
from maml_jax.results import tail

Figures = Mapping[str, Arrays]
"""What was measured, by the names of `measures.measurements`."""

MEASURES = (
    "headline",
    "query_set_size",
    "transductive_gain",
    "leak_certificate",
    "imbalance",
    "label_order",
    "600_against_6000_tasks",
    "open_interval",
    "adaptation",
    "baselines",
    "tail_calibration",
    "training_split_tasks",
    "provenance",
)
_REGRESSION = "the tasks have no classes"


def not_applicable(reason: str) -> dict[str, Any]:
    """The object of a measure that does not apply."""
    return {"value": None, "ci95": None, "n_tasks": 0, "reason": reason}


def summarise(subject: Subject, figures: Figures) -> dict[str, dict[str, Any]]:
    """The objects of all measures but 'provenance', in order.

    Args:
      subject: what was measured.
      figures: what came of it.
    """
    if subject.classified:
        made = {
            "query_set_size": query_set_size(subject, figures),
            "transductive_gain": transductive_gain(subject, figures),
            "leak_certificate": leak_certificate(subject, figures),
            "imbalance": imbalance(subject, figures),
            "label_order": label_order(figures["label_orders"]),
            "open_interval": open_interval(subject, figures),
            "baselines": baselines(subject, figures),
            "training_split_tasks": training_split(subject, figures),
        }
    else:
        made = {}
    made |= {
        "600_against_6000_tasks": {
            **few_against_many(protocol_scores(subject, figures["many_tasks"]), subject.counts.rows),
            "of": "accuracy" if subject.classified else "loss",
        },
        "adaptation": adaptation(subject, figures["adaptation"]),
        "tail_calibration": tail_calibration(subject, figures),
    }
    made["headline"] = headline(subject, figures, made)
    return {name: made.get(name) or not_applicable(_REGRESSION) for name in MEASURES if name != "provenance"}


def scores(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy of each task, `[tasks]`, of predictions `[tasks, queries]`; labels likewise, or `[queries]`."""
    return (predictions == labels).mean(1)


def protocol_scores(subject: Subject, measured: Arrays) -> np.ndarray:
    """Accuracy of each task by the protocol; in regression its loss."""
    if not subject.classified:
        return measured["losses"]
    return scores(measured["predictions"], np.repeat(np.arange(subject.way), subject.query))


def by_size(subject: Subject, figures: Figures, norm: str, size: int) -> np.ndarray:
    """Accuracy of each task with so many queries per class."""
    predictions = figures[f"rows_{file_name(norm)}"][f"predictions_{size}"]
    return scores(predictions, np.repeat(np.arange(subject.way), size))


def query_set_size(subject: Subject, figures: Figures) -> dict[str, Any]:
    """Accuracy by the number of queries; `value` is that with one per class less that with all."""
    norm = subject.of_kind(True) or subject.own
    values = {size: by_size(subject, figures, norm, size) for size in subject.sizes}
    most = subject.sizes[-1]
    return {
        **paired(values[subject.sizes[0]], values[most]),
        "norm": norm,
        "by_queries": {str(size): estimate(v) for size, v in values.items()},
        f"less_{most}": {str(size): paired(v, values[most]) for size, v in values.items() if size != most},
    }


def transductive_gain(subject: Subject, figures: Figures) -> dict[str, Any]:
    """What it is worth to see the queries together: `value` is transductive less inductive accuracy."""
    accuracy = {norm: by_size(subject, figures, norm, subject.pool) for norm in subject.methods}
    of = {norm: estimate(values) | {"transductive": subject.transductive[norm]} for norm, values in accuracy.items()}
    together, alone = subject.of_kind(True), subject.of_kind(False)
    if together is None or alone is None:
        kind = "inductive" if together else "transductive"
        return not_applicable(f"the model has no {kind} normalisation") | {"by_norm": of}
    return {**paired(accuracy[together], accuracy[alone]), "transductive": together, "inductive": alone, "by_norm": of}


def leak_certificate(subject: Subject, figures: Figures) -> dict[str, Any]:
    """Share of queries whose prediction depends on the others; `value` is the largest of the inductive modes."""
    modes = {}
    for norm in subject.methods:
        measured = figures[f"leaks_{file_name(norm)}"]
        changed = measured["changed"]
        found = estimate(changed.mean(1))
        if not changed.any():
            found["ci95"] = 3 / changed.size  # none of n: up to 3 / n with 95 % (rule of three)
        modes[norm] = {
            **found,
            "queries": int(changed.size),
            "changed": int(changed.sum()),
            "largest_change_of_a_logit": float(measured["moved"].max()),
            "must_be_zero": not subject.transductive[norm],
            "passed": bool(subject.transductive[norm] or not changed.any()),
        }
    bound = [mode for mode in modes.values() if mode["must_be_zero"]]
    worst = max(bound, key=lambda mode: mode["value"], default=None)
    passed = all(mode["passed"] for mode in modes.values())
    if worst is None:
        return not_applicable("no normalisation is inductive") | {"passed": passed, "by_norm": modes}
    return {name: worst[name] for name in ("value", "ci95", "n_tasks")} | {"passed": passed, "by_norm": modes}


def imbalance(subject: Subject, figures: Figures) -> dict[str, Any]:
    """Accuracy under classes of unequal size; `value` is that at the smallest α less that of balanced classes."""

    def by_alpha(norm):
        measured = figures[f"rows_{file_name(norm)}"]
        return {a: scores(measured[f"imbalanced_{a}"], measured[f"asked_{a}"] // subject.pool) for a in ALPHAS}

    values = {norm: by_alpha(norm) for norm in subject.methods}
    least, *_, balanced = ALPHAS
    norm = subject.of_kind(True) or subject.own
    return {
        **paired(values[norm][least], values[norm][balanced]),
        "norm": norm,
        "queries": subject.pool,
        "by_norm": {
            norm: {
                "by_alpha": {a: estimate(v) for a, v in of.items()},
                "less_balanced": {a: paired(v, of[balanced]) for a, v in of.items() if a != balanced},
            }
            for norm, of in values.items()
        },
    }


def label_order(measured: Arrays) -> dict[str, Any]:
    """Accuracy by the order of the labels; `value` is the mean over tasks of its deviation over orders."""
    accuracies, orders = measured["accuracies"].astype(np.float64), measured["orders"]
    every = len({tuple(order) for order in orders}) == np.prod(np.arange(1, orders.shape[1] + 1))
    deviation = accuracies.std(1, ddof=0 if every else 1)
    deviation[accuracies.max(1) == accuracies.min(1)] = 0.0  # not what rounding leaves of it
    return {
        **estimate(deviation),
        "orders": len(orders),
        "all_orders": bool(every),
        "best": estimate(accuracies.max(1)),
        "mean": estimate(accuracies.mean(1)),
        "worst": estimate(accuracies.min(1)),
    }


def few_against_many(values: np.ndarray, few: int) -> dict[str, Any]:
    """The first tasks against all; `value` is the difference of their means, `ci95` the interval of the few."""
    first, many = estimate(values[:few]), estimate(values)
    blocks = [estimate(values[start : start + few]) for start in range(0, len(values) - few + 1, few)]
    holding = [abs(block["value"] - many["value"]) <= block["ci95"] for block in blocks]
    difference = first["value"] - many["value"]
    return {
        "value": difference,
        "ci95": first["ci95"],
        "n_tasks": len(values),
        "few": first,
        "many": many,
        "agree": bool(abs(difference) <= first["ci95"]),
        "blocks_that_agree": float(np.mean(holding)),
    }


def open_interval(subject: Subject, figures: Figures) -> dict[str, Any]:
    """Accuracy on tasks that share no image, beside that of the usual tasks, and an interval for other classes."""
    usual = protocol_scores(subject, figures["many_tasks"])
    classes = subject.classes(len(usual))
    beside = {
        "usual": estimate(usual[: subject.counts.rows]),
        "jackknife": None if classes is None else statistics.jackknife(usual, classes, int(classes.max()) + 1),
    }
    measured = figures.get("disjoint", {})
    if "predictions" not in measured:
        return not_applicable("the split is too small for two tasks that share no image") | beside
    return {
        **estimate(protocol_scores(subject, measured)),
        "images_used": float(measured["used"]),
        **beside,
    }


def adaptation(subject: Subject, measured: Arrays) -> dict[str, Any]:
    """What adapting does; `value` is the accuracy after all steps less that before; of the loss in regression."""
    main = measured["accuracies"] if subject.classified else measured["losses"]
    steps = subject.steps
    columns = {"loss": measured["losses"]} | ({"accuracy": main} if subject.classified else {})
    by_step = [{"steps": k, **{n: estimate(v[:, k]) for n, v in columns.items()}} for k in range(main.shape[1])]
    result = {**paired(main[:, steps], main[:, 0]), "inner_steps": steps, "by_step": by_step}
    if not subject.classified:
        return result
    variants = {"nothing": main[:, 0], "everything": main[:, steps]}
    variants |= {name: measured[name] for name in ("head_only", "body_only", "head_from_zero") if name in measured}
    means = {name: measured[f"means_{name}"] for name in ("before", "after") if f"means_{name}" in measured}
    return result | {
        "adapted": {name: estimate(values) for name, values in variants.items()},
        "less_everything": {n: paired(v, main[:, steps]) for n, v in variants.items() if n != "everything"},
        "nearest_class_mean": {n: estimate(v) | {"less_adapted": paired(v, main[:, steps])} for n, v in means.items()},
    }


def baselines(subject: Subject, figures: Figures) -> dict[str, Any]:
    """What takes no meta-training; `value` is the model's accuracy less that of the better one."""
    labels, rows = np.repeat(np.arange(subject.way), subject.query), subject.counts.rows
    own = protocol_scores(subject, figures["many_tasks"])[:rows]
    others = {
        "nearest_neighbour_in_pixels": scores(figures["random"]["nearest"], labels),
        "random_initialisation": scores(figures["random"]["predictions"], labels),
    }
    better = max(others, key=lambda name: others[name].mean())
    return {
        **paired(own, others[better]),
        "model": estimate(own),
        **{name: estimate(values) | {"model_less_this": paired(own, values)} for name, values in others.items()},
    }


def tail_calibration(subject: Subject, figures: Figures) -> dict[str, Any]:
    """How the tasks lie, and what probabilities are worth; `value` is the calibration error of the own mode."""
    many = protocol_scores(subject, figures["many_tasks"])[: subject.counts.rows]
    if not subject.classified:
        return estimate(many) | {"tail": tail(many, best=min)}
    found = {}
    for norm in subject.methods:
        measured = figures[f"rows_{file_name(norm)}"]
        right = measured[f"predictions_{subject.pool}"] == subject.labels
        found[norm] = {
            "calibration_error": statistics.calibration(measured["confidence"], right),
            "confidence": estimate(measured["confidence"].mean(1)),
            "negative_log_likelihood": estimate(measured["nll"].mean(1)),
            "tail": tail(right.mean(1)),
        }
    return {**found[subject.own]["calibration_error"], "bins": statistics.BINS, "tail": tail(many), "by_norm": found}


def training_split(subject: Subject, figures: Figures) -> dict[str, Any]:
    """The same protocol on classes seen in training; `value` is the accuracy there less that on the tested split."""
    if "train_split" not in figures:
        return not_applicable("there are no other classes that the model was trained on, or too few")
    there = protocol_scores(subject, figures["train_split"])
    here = protocol_scores(subject, figures["many_tasks"])[: subject.counts.rows]
    return {**statistics.unpaired(there, here), "train": estimate(there), "tested": estimate(here)}


def headline(subject: Subject, figures: Figures, made: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The first line of the report; `value` is the inductive accuracy, or the own one if none is."""
    if not subject.classified:
        found = estimate(protocol_scores(subject, figures["many_tasks"])[: subject.counts.rows])
        return {**found, "sentence": f"loss {found['value']:.4f} (± {found['ci95']:.4f}) after {subject.steps} steps"}
    norm = subject.of_kind(False) or subject.own
    kind = "transductive" if subject.transductive[norm] else "inductive"
    found = estimate(by_size(subject, figures, norm, subject.pool))
    gain, unequal, order = (made[name]["value"] for name in ("transductive_gain", "imbalance", "label_order"))
    sentence = f"{found['value']:.1%} {kind} (± {found['ci95']:.1%})"
    if gain is not None:
        sentence += f"; {_signed(gain)} from seeing the queries together"
    sentence += f"; {_signed(unequal)} under imbalance; ± {order:.1%} by the order of labels"
    return {**found, "sentence": sentence.replace("%", " %"), "norm": norm}


def _signed(value):
    return f"{'+' if round(value, 3) >= 0 else '−'} {abs(value):.1%}"
