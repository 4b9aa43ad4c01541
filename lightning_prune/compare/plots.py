"""Pictures of a comparison, which colour-blind readers can read: each method has a marker of its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lightning_prune.compare.methods import FULL
from lightning_prune.compare.report import Row, mean_and_spread
from lightning_prune.compare.verdict import Verdict
from lightning_prune.core.export import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of Okabe and Ito ("Color Universal Design", 2008), without black and yellow."""
MARKERS = "osD^vP*Xp<>hd8"
GREY = "#555555"


def _new_figure(height: float) -> Figure:
    try:
        import matplotlib  # noqa: F401  (the other may be there without it)
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected matplotlib to draw the plots, but it is not installed. Run "
            "`pip install 'lightning-prune[plot]'` and the same command again: finished runs are kept."
        ) from error
    return Figure(figsize=(9, height), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=150)
    return path


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each method; controls are grey crosses.

    Example:
        >>> styles(["A", "full data, 1 of 2 epochs"])["A"]
        {'color': '#0072B2', 'marker': 'o'}
    """
    own = [label for label in labels if not is_full(label)]
    found: dict[str, dict[str, Any]] = {
        label: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]} for i, label in enumerate(own)
    }
    return {label: found.get(label, {"color": GREY, "marker": "x"}) for label in labels}


def is_full(label: str) -> bool:
    """Return whether a row is of full data, for all or for fewer epochs."""
    return label == FULL or label.startswith(f"{FULL}, ")


def verdicts(rows: Sequence[Row], found: Sequence[Verdict | None], metric: str, margin: float) -> Figure:
    """Draw each row's difference to full data, its interval, and the margin.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    judged = [(row, verdict) for row, verdict in zip(rows, found, strict=True) if verdict and verdict.num_pairs]
    figure = _new_figure(1.8 + 0.32 * len(judged))
    axes = figure.add_subplot(xlabel=f"{metric}: difference to full data with the same seed (right is better)")
    style = styles(list(dict.fromkeys(row.label for row, _ in judged)))
    reach = [margin] + [abs(v) for _, verdict in judged for v in (verdict.low, verdict.high) if math.isfinite(v)]
    reach += [abs(verdict.difference) for _, verdict in judged if math.isfinite(verdict.difference)]
    limit = min(1.1 * max(reach), 12 * max(margin, *(abs(v.difference) for _, v in judged))) if judged else 1.0
    for place, (row, verdict) in enumerate(judged):
        low, high = max(verdict.low, -2 * limit), min(verdict.high, 2 * limit)
        dotted = "-" if math.isfinite(verdict.low) else ":"
        axes.plot([low, high], [place, place], dotted, color=style[row.label]["color"], linewidth=2)
        axes.plot([verdict.difference], [place], **style[row.label], markersize=8, linestyle="")
        axes.annotate(
            f"{verdict.outcome}, n = {verdict.num_pairs}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(-margin, color="black", linewidth=1, linestyle="--")
    names = [row.label if row.ratio is None else f"{row.label}, {100 * row.ratio:g} % saved" for row, _ in judged]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(-limit, limit)
    axes.grid(alpha=0.3, axis="x")
    axes.set_title(
        "Did pruning hurt? 95 % intervals, for all rows at once (dotted: none yet)\n"
        f"dashed: a loss of {margin:g}, the margin; no worse: the whole interval is to the right of it",
        fontsize="medium",
        loc="left",
    )
    return figure


@final
class _Pictures:
    """Draws the metric against something.

    Args:
        rows: Rows; full data first.
        metric: Name of the metric.
        lower: Whether lower values are better.
    """

    def __init__(self, rows: Sequence[Row], metric: str, lower: bool) -> None:
        self.rows = [row for row in rows if row.values]
        self.metric = metric
        self.better = "lower is better" if lower else "higher is better"
        self.style = styles(list(dict.fromkeys(row.label for row in self.rows)))
        counts = sorted({len(row.values) for row in self.rows})
        self.num = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}" if counts else "n = 0"

    def axes(self, title: str, xlabel: str) -> tuple[Figure, Any]:
        figure = _new_figure(5)
        axes = figure.add_subplot(xlabel=xlabel, ylabel=f"{self.metric} ({self.better})")
        axes.set_title(title, fontsize="medium", loc="left")
        axes.grid(alpha=0.3)
        self._full_line(axes)
        return figure, axes

    def _full_line(self, axes: Any) -> None:
        """Draw full data as a line, and its deviation as a band."""
        for row in self.rows:
            if row.label == FULL:
                mean, spread = mean_and_spread(list(row.values.values()))
                axes.axhline(mean, color="black", linewidth=1, linestyle="--", label=FULL)
                if math.isfinite(spread):
                    axes.axhspan(mean - spread, mean + spread, color="black", alpha=0.07)

    def against(self, quantity: str, scale: float, what: str, xlabel: str) -> Figure:
        """Draw points with bars of a standard deviation, side by side; a line joins the ratios of a method."""
        found = [scale * statistics.fmean(getattr(row, quantity)) for row in self.rows]
        step = 0.12 * (max(found) - min(found)) / len(self.style) if found and quantity == "saved" else 0.0
        title = f"{self.metric} against {what}\nmeans and standard deviations over seeds, {self.num} runs each"
        title += "; moved apart sideways" if step else ""
        figure, axes = self.axes(title, xlabel)
        for place, (label, style) in enumerate(self.style.items()):
            own = [row for row in self.rows if row.label == label]
            spots = sorted(
                (scale * statistics.fmean(getattr(row, quantity)), *mean_and_spread(list(row.values.values())))
                for row in own
            )
            x, y, spread = zip(*spots, strict=True)
            moved = 0.0 if is_full(label) else step * (place - len(self.style) / 2)
            x = tuple(value + moved for value in x)
            bars = [0 if math.isnan(s) else s for s in spread]
            name = f"{FULL}, all epochs" if label == FULL else label
            axes.errorbar(x, y, bars, capsize=3, markersize=7, linewidth=1, label=name, **style)
        self._legend(figure)
        return figure

    def curves(self, runs: Sequence[dict[str, Any]]) -> Figure | None:
        """Draw the mean course of each row; None if no run was validated."""
        title = f"{self.metric} in the course of training\nmeans over seeds, {self.num} runs each"
        figure, axes = self.axes(title, "time since the start of training (s)")
        drawn = False
        ratios = sorted({row.ratio for row in self.rows if row.ratio is not None})
        for row in self.rows:
            courses = [
                [(point["seconds"], point[self.metric]) for point in run.get("curve", []) if self.metric in point]
                for run in runs
                if (run["label"], run["ratio"]) == (row.label, row.ratio)
            ]
            length = min(map(len, filter(None, courses)), default=0)
            if not length:
                continue
            drawn = True
            means = [
                tuple(map(statistics.fmean, zip(*(course[i] for course in courses if course), strict=True)))
                for i in range(length)
            ]
            name = row.label if row.ratio is None else f"{row.label}, {100 * row.ratio:g} %"
            shown: dict[str, Any] = {"markersize": 5, "markevery": max(1, length // 10), "linewidth": 1.2}
            shown["linestyle"] = "-" if row.ratio is None else ("-", "--", ":", "-.")[ratios.index(row.ratio) % 4]
            axes.plot(*zip(*means, strict=True), label=name, **self.style[row.label], **shown)
        self._legend(figure)
        return figure if drawn else None

    @staticmethod
    def _legend(figure: Figure) -> None:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)


def pictures(rows: Sequence[Row], runs: Sequence[dict[str, Any]], metric: str, *, lower: bool) -> dict[str, Figure]:
    """Draw the metric against saved sample-steps, against wall time, and in the course of the runs.

    Args:
        rows: Rows; full data first.
        runs: All runs, with their courses.
        metric: Name of the metric.
        lower: Whether lower values are better.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    draw = _Pictures(rows, metric, lower)
    found = {
        "metric_vs_saved.png": draw.against("saved", 100, "what was saved", "saved sample-steps (%)"),
        "metric_vs_time.png": draw.against("seconds", 1, "time", "wall time (s)"),
        "time_to_metric.png": draw.curves(runs),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
