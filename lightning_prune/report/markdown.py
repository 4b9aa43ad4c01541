"""A summary as Markdown: the numbers, without charts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_prune.report.words import duration, number, percent

_MOST_EPOCHS = 30
_MOST_CLASSES = 40


def render_markdown(summary: dict[str, Any]) -> str:
    """Return a summary as Markdown."""
    runs = summary["runs"]
    parts = [f"# Pruning report: {summary['dataset']}, {summary['num_samples']:,} samples", _glance(runs)]
    if summary["comparison"] is not None:
        parts += _comparison(summary["comparison"])
    for run in runs:
        parts += _run(run, level=2 if len(runs) == 1 else 3, name=len(runs) > 1)
    parts.append(f"lightning-prune {summary['version']}, {summary['date']}.")
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---" if i == 0 else "---:" for i in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _glance(runs: Sequence[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        metric, saved = run["metric"], run["saved"]
        said = f"{metric['name']} {number(metric['value'])}" if metric else "-"
        times = (duration(saved["seconds"]), duration(saved["seconds_saved"]))
        rows.append(
            [run["name"], run["description"], said, percent(saved["fraction"]), str(len(run["epochs"])), *times]
        )
    head = ("run", "method", "metric", "sample-steps saved", "epochs", "time of training", "time saved, about")
    return _table(head, rows)


def _run(run: dict[str, Any], *, level: int, name: bool) -> list[str]:
    def heading(text: str) -> str:
        return f"{'#' * level} {text}"

    parts = [f"## {run['name']}"] if name else []
    parts += [f"> **Warning.** {warning}" for warning in run["warnings"]]
    parts += [heading("Epochs"), _epochs(run["epochs"])]
    if run["classes"] is not None:
        parts += [heading("Classes"), _classes(run["classes"])]
    usage = run["usage"]
    parts += [
        heading("How often samples were trained"),
        f"On average in {number(usage['mean'])} of {len(run['epochs'])} epochs. Never: {usage['never']:,}. Never again "
        f"after the first epoch: {usage['only_first']:,}.",
    ]
    for part in run["gallery"].values():
        parts += [heading(part["title"]), part["why"], _gallery(run, part["ids"])]
    return parts + ["\n".join(f"- {note}" for note in run["notes"])] * bool(run["notes"])


def _epochs(epochs: Sequence[dict[str, Any]]) -> str:
    step = -(-len(epochs) // _MOST_EPOCHS)
    shown = [epoch for i, epoch in enumerate(epochs) if i % step == 0 or i == len(epochs) - 1]
    rows = [
        [
            str(epoch["epoch"]),
            percent(epoch["kept"]),
            percent(epoch["saved"]),
            *(number(epoch[f"loss_{p}"]) for p in ("p5", "p50", "p95")),
        ]
        for epoch in shown
    ]
    return _table(("epoch", "kept", "saved so far", "loss, 5 %", "loss, median", "loss, 95 %"), rows)


def _classes(classes: dict[str, Any]) -> str:
    order = sorted(range(len(classes["names"])), key=lambda c: (classes["kept"][c] is None, classes["kept"][c] or 0.0))
    rows = [
        [
            classes["names"][c],
            f"{classes['sizes'][c]:,}",
            percent(classes["kept"][c]),
            "yes" * (c in classes["starved"]),
        ]
        for c in order[:_MOST_CLASSES]
    ]
    more = len(order) - len(rows)
    table = _table(("class", "samples", "kept in the pruned epochs", "starved"), rows)
    return table + (f"\n\n{more} more classes were kept more." if more else "")


def _gallery(run: dict[str, Any], ids: Sequence[int]) -> str:
    if not ids:
        return "None."
    rows, classes = run["samples"], run["classes"]
    place = {i: k for k, i in enumerate(rows["id"])}

    def label(name: str, i: int) -> str:
        value = rows[name][place[i]] if name in rows else None
        if value is None or value == -1:
            return "-"
        return classes["names"][value] if classes and isinstance(value, int) else number(value)

    cells = [
        [
            str(i),
            label("given", i),
            label("suggested", i),
            *(number(rows[name][place[i]]) for name in ("mean", "spread")),
            str(rows["times"][place[i]]),
        ]
        for i in ids
    ]
    return _table(("id", "given", "suggested", "mean loss", "spread", "times trained"), cells)


def _comparison(comparison: dict[str, Any]) -> list[str]:
    names = comparison["names"]

    def matrix(values: list[list[float | None]]) -> str:
        return _table(["", *names], [[name, *map(number, row)] for name, row in zip(names, values, strict=True)])

    rows = [[str(i), *(percent(share[k]) for share in comparison["shares"])] for k, i in enumerate(comparison["ids"])]
    disagreed = _table(("id", *names), rows) if rows else "None: they trained every sample equally often."
    return [
        "## Comparison",
        "Rank correlation of how often the runs trained each sample:",
        matrix(comparison["shared_usage"]),
        "Rank correlation of the samples' mean losses:",
        matrix(comparison["shared_losses"]),
        "Samples that they disagree on most, with the share of the epochs in which each run trained them:",
        disagreed,
    ]
