"""Tables and plots of a comparison."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_prune.core.export import atomic_write

COLUMNS = ("method", "asked to save", "runs", "{metric}", "saved", "wall time", "speed-up", "ideal", "efficiency")


@final
@dataclass(frozen=True)
class Row:
    """The runs of one method at one ratio.

    Attributes:
        label: The method.
        ratio: Share that it was asked to save; None: full data, or a method run as given.
        values: The metric of each finished run.
        saved: Share of the sample-steps saved, in each.
        seconds: Wall time of each.
        num_failed: Runs that crashed.
    """

    label: str
    ratio: float | None
    values: list[float]
    saved: list[float]
    seconds: list[float]
    num_failed: int


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation over runs (NaN for one run; both NaN for none).

    Example:
        >>> mean_and_spread([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return (statistics.fmean(values) if values else math.nan), spread


def make_rows(runs: Sequence[dict[str, Any]], failed: dict[str, str], metric: str) -> list[Row]:
    """Group finished and failed runs by method and ratio, in the order of ``runs``.

    Args:
        runs: Specs of all runs; the finished ones with ``metrics``, ``saved`` and ``seconds``.
        failed: Why runs failed, by ``name``.
        metric: Name of the metric; NaN where a run did not log it.
    """
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["label"], run["ratio"]), []).append(run)
    rows = []
    for (label, ratio), members in groups.items():
        done = [run for run in members if "metrics" in run]
        rows.append(
            Row(
                label,
                ratio,
                [run["metrics"].get(metric, math.nan) for run in done],
                [run["saved"] for run in done],
                [run["seconds"] for run in done],
                sum(run["name"] in failed for run in members),
            )
        )
    return rows


def make_table(rows: Sequence[Row], metric: str) -> str:
    """Return a Markdown table: means over the runs, and how much of the ideal speed-up is reached.

    The ideal speed-up is ``1 / (1 - saved)``; efficiency is the measured speed-up over the full data, divided by it.
    """
    full = mean_and_spread(rows[0].seconds)[0]
    cells = [[column.format(metric=metric) for column in COLUMNS]]
    for row in rows:
        (value, spread), saved, seconds = (
            mean_and_spread(row.values),
            mean_and_spread(row.saved)[0],
            mean_and_spread(row.seconds)[0],
        )
        speed_up, ideal = (full / seconds if seconds else math.nan), 1 / (1 - saved)
        cells.append([
            row.label,
            "" if row.ratio is None else f"{100 * row.ratio:g} %",
            f"{len(row.values)}" + (f" ({row.num_failed} failed)" if row.num_failed else ""),
            *(
                (f"{value:.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}"), f"{100 * saved:.1f} %",
                 f"{seconds:.1f} s", f"{speed_up:.2f}x", f"{ideal:.2f}x", f"{100 * speed_up / ideal:.0f} %")
                if row.values else ("-",) * 6
            ),
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    aligned = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in cells
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in [aligned[0], rule, *aligned[1:]])


def write_csv(runs: Sequence[dict[str, Any]], failed: dict[str, str], metric: str, path: Path) -> None:
    """Write one line per run, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["method", "ratio", "seed", "status", metric, "saved", "seconds", "cpu_seconds", "init_args"])
    for run in runs:
        status = "finished" if "metrics" in run else failed.get(run["name"], "not run")
        found = [
            run.get("metrics", {}).get(metric, ""),
            *(run.get(name, "") for name in ("saved", "seconds", "cpu_seconds")),
        ]
        ratio = "" if run["ratio"] is None else run["ratio"]
        writer.writerow([run["label"], ratio, run["seed"], status, *found, json.dumps(run["init_args"])])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_markdown(table: str, failed: dict[str, str], notes: Sequence[str], path: Path) -> None:
    """Write the table, what it is of, and what failed."""
    parts = ["# Comparison of pruning methods\n", *(f"{note}\n" for note in notes), table]
    if failed:
        parts.append("Failed runs:\n")
        parts.append("".join(f"- `{name}`: {reason}\n" for name, reason in failed.items()))
    with atomic_write(path) as file:
        file.write("\n".join(parts).encode())


def draw_plots(rows: Sequence[Row], runs: Sequence[dict[str, Any]], metric: str, folder: Path) -> list[Path]:
    """Draw the metric against saved sample-steps, against wall time, and in the course of the runs.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected matplotlib to draw the plots, but it is not installed. Run "
            "`pip install 'lightning-prune[plot]'` and the same command again: finished runs are kept."
        ) from error
    colors = matplotlib.color_sequences["tab10"]
    labels = list(dict.fromkeys(row.label for row in rows if row.values))
    color = {label: colors[i % len(colors)] for i, label in enumerate(labels)}
    marker = {label: "osD^v"[i // len(colors) % 5] for i, label in enumerate(labels)}  # where colors repeat

    def save(name: str, xlabel: str, draw: Any) -> Path:
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel, ylabel=metric)
        draw(axes)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small")
        with atomic_write(folder / name) as file:
            figure.savefig(file, format="png", dpi=150)
        return folder / name

    def points(quantity: str, scale: float) -> Any:
        def draw(axes: Any) -> None:
            for label in labels:
                own = [row for row in rows if row.label == label and row.values]
                spots = sorted(
                    (scale * mean_and_spread(getattr(row, quantity))[0], *mean_and_spread(row.values)) for row in own
                )
                x, y, spread = zip(*spots, strict=True)
                bars = [0 if math.isnan(s) else s for s in spread]
                axes.errorbar(x, y, bars, marker=marker[label], capsize=3, label=label, color=color[label])

        return draw

    def curves(axes: Any) -> None:
        for run in runs:
            curve = [point for point in run.get("curve", []) if metric in point]
            if curve:
                x, y = [point["seconds"] for point in curve], [point[metric] for point in curve]
                label = None if run["label"] in axes.get_legend_handles_labels()[1] else run["label"]
                axes.plot(
                    x, y, color=color[run["label"]], marker=marker[run["label"]], markersize=3, alpha=0.5, label=label
                )

    plots = [
        save("metric_vs_saved.png", "saved sample-steps (%)", points("saved", 100)),
        save("metric_vs_time.png", "wall time (s)", points("seconds", 1)),
    ]
    if any(metric in point for run in runs for point in run.get("curve", [])):
        plots.append(save("time_to_metric.png", "time since the start of training (s)", curves))
    return plots
