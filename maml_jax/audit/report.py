"""The audit in words: `report.md`."""

from collections.abc import Mapping
from typing import Any

Measures = Mapping[str, Mapping[str, Any]]


def in_words(measures: Measures) -> str:
    """The report in Markdown; its first line is the headline.

    Args:
      measures: the objects of `report.json`.
    """
    facts = measures["provenance"]
    parts = [measures["headline"]["sentence"], _protocol(facts)]
    if "by_queries" in measures["query_set_size"]:
        parts.append("![overview](overview.png)")
    for name, write in _SECTIONS.items():
        measure = measures[name]
        reason = measure.get("reason")
        title = f"## {_TITLES[name]}"
        body = write(measure) if "reason" not in measure or _has_rows(measure) else []
        parts.append("\n\n".join([title, *([f"Does not apply: {reason}."] if reason else []), *body]))
    return "\n\n".join(parts) + "\n"


def _protocol(facts):
    data = facts["data"]
    trained = "" if data["name"] == data["trained_on"] else f" (trained on {data['trained_on']})"
    return (
        f"{facts['way']}-way {facts['shot']}-shot on the {facts['split']} split of {data['name']}{trained}, "
        f"{facts['pool']} queries per class, {facts['inner_steps']} inner steps, normalisation `{facts['norm']}`, "
        f"meta-step {facts['step']} ({facts['checkpoint']}). "
        "Accuracies are means over tasks ± half the width of their 95 % Student-t interval; all rows are of the same "
        "tasks, and differences are paired, unless said otherwise."
    )


def _percent(value):
    return "–" if value is None else f"{value:.2%}".replace("%", " %").replace("-", "−")


def _share(value):
    return f"{value:.0%}".replace("%", " %")


def _of(found):
    if found is None:
        return "–"
    return _percent(found["value"]) + (f" ± {_percent(found['ci95'])}" if found["ci95"] is not None else "")


def _of_loss(found):
    return f"{found['value']:.4f} ± {found['ci95']:.4f}"


def _table(*rows):
    head, *body = [[str(cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _difference(found):
    """A paired difference as cells of a table: itself, correlation, tasks that it takes to be seen."""
    correlation = found["correlation"]
    return _of(found), "–" if correlation is None else f"{correlation:.2f}", found["tasks_for_one_point"] or "–"


_DIFFERENCE = ("difference", "correlation", "tasks for a gap of 1 point")


def _queries(m):
    least, *_, most = m["by_queries"]
    rows = [
        (q, _of(found), *(_difference(m[f"less_{most}"][q]) if q != most else ("–",) * 3))
        for q, found in m["by_queries"].items()
    ]
    return [
        f"Normalisation `{m['norm']}`, the first of the same {most} query images per class; {m['n_tasks']} tasks.",
        _table(("queries per class", "accuracy", f"less that at {most}", *_DIFFERENCE[1:]), *rows),
        "![accuracy by the number of queries](queries.png)" if least != most else "",
    ]


def _gain(m):
    rows = [(f"`{n}`", "yes" if f["transductive"] else "no", _of(f)) for n, f in m["by_norm"].items()]
    body = [_table(("normalisation at test", "transductive", "accuracy"), *rows)]
    if m["value"] is not None:
        difference, correlation, tasks = _difference(m)
        body.insert(0, f"`{m['transductive']}` − `{m['inductive']}`: {difference}, correlation {correlation}; a gap of "
                       f"1 point needs {tasks} tasks.")  # fmt: skip
    return [*body, "![accuracy of the tasks](tasks.png)"]


def _leaks(m):
    rows = [
        (
            f"`{norm}`",
            f["changed"],
            f["queries"],
            _percent(f["value"]),
            f"{f['largest_change_of_a_logit']:.1e}",
            ("passed" if f["passed"] else "FAILED") if f["must_be_zero"] else "transductive",
        )
        for norm, f in m["by_norm"].items()
    ]
    return [
        "Predictions that change when the other queries of the set are redrawn; 0 for all that is inductive.",
        _table(("normalisation", "changed", "of", "share", "largest change of a logit", ""), *rows),
    ]


def _imbalance(m):
    rows = [
        (
            f"`{norm}`",
            a.replace("inf", "∞"),
            _of(found),
            *(_difference(of["less_balanced"][a]) if a != "inf" else "–––"),
        )
        for norm, of in m["by_norm"].items()
        for a, found in of["by_alpha"].items()
    ]
    return [
        f"{m['queries']} queries in all, classes in Dirichlet(α) proportions; α = ∞ is balanced.",
        _table(("normalisation", "α", "accuracy", "less balanced", *_DIFFERENCE[1:]), *rows),
    ]


def _order(m):
    which = "all" if m["all_orders"] else "random"
    rows = [(name, _of(m[name])) for name in ("best", "mean", "worst")]
    return [
        f"{m['orders']} orders of the labels ({which}), {m['n_tasks']} tasks: the deviation over orders is {_of(m)}.",
        _table(("order, chosen in each task by its queries", "accuracy"), *rows),
        "![accuracy by label order](orders.png)",
    ]


def _few(m):
    few, many = (_of(m[n]) if m["of"] == "accuracy" else _of_loss(m[n]) for n in ("few", "many"))
    return [
        f"{m['few']['n_tasks']} tasks: {few}; {m['many']['n_tasks']} tasks: {many}. They "
        f"{'agree' if m['agree'] else 'do not agree'} within the interval of the few; of all runs of as many tasks, "
        f"{_share(m['blocks_that_agree'])} do.",
        "![running mean](running.png)",
    ]


def _open(m):
    rows = [("tasks as usual", _of(m["usual"]), m["usual"]["n_tasks"])]
    if m["value"] is not None:
        rows.append((f"no image twice ({_share(m['images_used'])} of all used)", _of(m), m["n_tasks"]))
    if m["jackknife"]:
        rows.append((f"for other classes: each of {m['jackknife']['n_classes']} left out", _of(m["jackknife"]), m["jackknife"]["n_tasks"]))  # fmt: skip # noqa: E501
    return [_table(("", "accuracy", "tasks"), *rows)]


def _adaptation(m):
    by_accuracy = "accuracy" in m["by_step"][0]
    body = [
        _table(
            ("inner steps", *(("accuracy",) if by_accuracy else ()), "loss"),
            *(
                (row["steps"], *((_of(row["accuracy"]),) if by_accuracy else ()), f"{row['loss']['value']:.4f}")
                for row in m["by_step"]
            ),
        ),
        "![accuracy and loss by inner steps](steps.png)",
    ]
    if not by_accuracy:
        return body
    names = {
        "nothing": "nothing adapts",
        "head_only": "head only",
        "body_only": "body only",
        "head_from_zero": "everything, the head from zero",
        "everything": "everything",
    }
    rows = [
        (names[n], _of(f), *(_difference(m["less_everything"][n]) if n != "everything" else "–––"))
        for n, f in m["adapted"].items()
    ]
    rows += [
        (f"nearest class mean of features, {n} adaptation", _of(f), *_difference(f["less_adapted"]))
        for n, f in m["nearest_class_mean"].items()
    ]
    return [*body, _table(("", "accuracy", "less everything adapted", *_DIFFERENCE[1:]), *rows)]


def _baselines(m):
    names = ("nearest_neighbour_in_pixels", "random_initialisation")
    rows = [(n.replace("_", " "), _of(m[n]), *_difference(m[n]["model_less_this"])) for n in names]
    return [_table(("", "accuracy", "model less this", *_DIFFERENCE[1:]), ("model", _of(m["model"]), *"–––"), *rows)]


def _tail(m):
    if "by_norm" not in m:
        return ["; ".join(f"{n.replace('_', ' ')} {v:.4f}" for n, v in m["tail"].items()) + "."]
    columns = ("median", "quantile_25", "quantile_5", "quantile_1", "worst_5_mean")
    rows = [
        (
            f"`{norm}`",
            *(_percent(f["tail"][c]) for c in columns),
            _of(f["calibration_error"]),
            _percent(f["confidence"]["value"]),
            _of_loss(f["negative_log_likelihood"]),
        )
        for norm, f in m["by_norm"].items()
    ]
    return [
        _table(
            (
                "normalisation",
                "median task",
                "25 %",
                "5 %",
                "1 %",
                "mean of the worst 5 %",
                f"calibration error ({m['bins']} bins)",
                "mean confidence",
                "negative log-likelihood",
            ),
            *rows,
        )
    ]


def _train(m):
    rows = (
        ("training classes", _of(m["train"])),
        ("tested classes", _of(m["tested"])),
        ("difference (not paired)", _of(m)),
    )
    return [_table(("", "accuracy"), *rows)]


def _provenance(m):
    rows = [
        (s, f["classes"], f["published_classes"] or "–", f["images"], f"`{f['sha256'][:12]}`")
        for s, f in m["splits"].items()
    ]
    body = []
    if rows:
        body.append(_table(("split", "classes", "published", "images", "SHA-256"), *rows))
        shared = [f"{n}: {f['images']} (in {', '.join(f['examples'])})" for n, f in m["duplicates"].items()]
        body.append(f"Images that two splits share, bit for bit: {'; '.join(shared) or 'none'}.")
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    device = f"{m['device']['count']} × {m['device']['kind']}"
    return [*body, f"`{m['command']}`; {versions}; {device}; parameters `{m['parameters_sha256'][:12]}`."]


_SECTIONS = {
    "query_set_size": _queries,
    "transductive_gain": _gain,
    "leak_certificate": _leaks,
    "imbalance": _imbalance,
    "label_order": _order,
    "600_against_6000_tasks": _few,
    "open_interval": _open,
    "adaptation": _adaptation,
    "baselines": _baselines,
    "tail_calibration": _tail,
    "training_split_tasks": _train,
    "provenance": _provenance,
}
_TITLES = {
    "query_set_size": "Query-set size",
    "transductive_gain": "Transductive gain",
    "leak_certificate": "Leak certificate",
    "imbalance": "Imbalance",
    "label_order": "Label order",
    "600_against_6000_tasks": "600 against 6,000 tasks",
    "open_interval": "Open interval",
    "adaptation": "Adaptation",
    "baselines": "Baselines",
    "tail_calibration": "Tail and calibration",
    "training_split_tasks": "Training-split tasks",
    "provenance": "Provenance",
}


def _has_rows(measure):
    """Whether a measure that has no value has something to show."""
    return "by_norm" in measure or "usual" in measure
