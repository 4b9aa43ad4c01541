"""Rows and tables of a comparison."""

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

from lightning_prune.compare.verdict import Verdict
from lightning_prune.core.export import atomic_write

MOST_EFFICIENCY = 1.05
"""Share of the ideal speed-up above which a measured one is not believed."""
CSV_COLUMNS = ("saved", "seconds", "cpu_seconds", "threads")


@final
@dataclass(frozen=True)
class Row:
    """The runs of one method at one ratio.

    Attributes:
        label: The method.
        ratio: Share that it was asked to save; None: full data, or a method run as given.
        values: The metric of each finished run, by seed.
        saved: Share of the sample-steps saved, in each.
        seconds: Wall time of each.
        cpu_seconds: CPU time of each.
        num_failed: Runs that crashed.
        unreachable: Why it was not run at all, if so.
    """

    label: str
    ratio: float | None
    values: dict[int, float]
    saved: list[float]
    seconds: list[float]
    cpu_seconds: list[float]
    num_failed: int = 0
    unreachable: str | None = None

    def better_than(self, other: Row, *, lower: bool) -> list[float]:
        """Return by how much each run is better than the other row's of the same seed, in the order of the seeds."""
        sign = -1 if lower else 1
        return [sign * (self.values[s] - other.values[s]) for s in sorted(self.values.keys() & other.values.keys())]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation over runs; NaN of one run, both NaN of none or of values not finite.

    Example:
        >>> mean_and_spread([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return (statistics.fmean(values) if values else math.nan), spread


def make_rows(
    runs: Sequence[dict[str, Any]],
    failed: dict[str, str],
    unreachable: dict[tuple[str, float | None], str],
    metric: str,
) -> list[Row]:
    """Group finished and failed runs by method and ratio, in the order of ``runs``, and put the unreachable last.

    Args:
        runs: Specs of all runs; the finished ones with ``metrics``, ``saved``, ``seconds`` and ``cpu_seconds``.
        failed: Why runs failed, by ``name``.
        unreachable: Why methods were not run at ratios, by label and ratio.
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
                {run["seed"]: run["metrics"].get(metric, math.nan) for run in done},
                saved=[run["saved"] for run in done],
                seconds=[run["seconds"] for run in done],
                cpu_seconds=[run["cpu_seconds"] for run in done],
                num_failed=sum(run["name"] in failed for run in members),
            )
        )
    return rows + [Row(*key, {}, [], [], [], unreachable=why) for key, why in unreachable.items() if key not in groups]


def answer_table(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict | None],
    controls: Sequence[Verdict | None],
    metric: str,
) -> str:
    """Return the Markdown table that says whether pruning hurt.

    Args:
        rows: Full data first.
        verdicts: Of each row against full data.
        controls: Of each row against as many steps of full data, with a margin of 0.
        metric: Its name.
    """
    header = ["method", "asked to save", "saved", "runs", metric, "against full data", "verdict"]
    lines = [[*header, "against fewer epochs"]]
    for row, verdict, control in zip(rows, verdicts, controls, strict=True):
        value, spread = mean_and_spread(list(row.values.values()))
        lines.append([
            *_name(row),
            f"{100 * statistics.fmean(row.saved):.1f} %" if row.saved else "-",
            f"{len(row.values)}" + (f" ({row.num_failed} failed)" if row.num_failed else ""),
            f"{value:.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}") if row.values else "-",
            _difference(verdict),
            "cannot be reached" if row.unreachable else "" if verdict is None else in_words(verdict),
            _difference(control) + ("" if control is None else f": {_against_control(control)}"),
        ])  # fmt: skip
    return _markdown(lines)


def cost_table(rows: Sequence[Row]) -> str:
    """Return the Markdown table that says what pruning saved.

    The ideal speed-up is ``1 / (1 - saved)``; efficiency is the measured speed-up over the full data, divided by it.
    """
    full = mean_and_spread(rows[0].seconds)[0] if rows else math.nan
    lines = [["method", "asked to save", "wall time", "CPU time", "speed-up", "ideal", "efficiency"]]
    for row in rows:
        if not row.values:
            continue
        seconds, cpu = statistics.fmean(row.seconds), statistics.fmean(row.cpu_seconds)
        ideal, speed_up = 1 / (1 - statistics.fmean(row.saved)), full / seconds if seconds else math.nan
        efficiency = "disturbed" if is_disturbed(row, full) else f"{100 * speed_up / ideal:.0f} %"
        lines.append([*_name(row), f"{seconds:.1f} s", f"{cpu:.1f} s", f"{speed_up:.2f}x", f"{ideal:.2f}x", efficiency])
    return _markdown(lines)


def is_disturbed(row: Row, full_seconds: float) -> bool:
    """Return whether a row is faster than what it saved allows, so that its times, or full data's, cannot be right."""
    seconds = statistics.fmean(row.seconds)
    return seconds > 0 and full_seconds / seconds * (1 - statistics.fmean(row.saved)) > MOST_EFFICIENCY


def in_words(verdict: Verdict) -> str:
    """Return a verdict for people.

    Example:
        >>> in_words(Verdict("cannot tell", 3, 0.0, -1.0, 1.0, 0.5, 17))
        'cannot tell yet: about 17 more seeds'
    """
    if verdict.is_decided:
        return verdict.outcome
    if math.isnan(verdict.difference) and verdict.num_pairs:
        return "cannot tell: not finite"
    more = "over 1000" if verdict.more_seeds is None else f"about {verdict.more_seeds}"
    return f"cannot tell yet: {more} more seed{'' if verdict.more_seeds == 1 else 's'}"


def _against_control(verdict: Verdict) -> str:
    return {"no worse": "better", "worse": "worse", "cannot tell": "cannot tell"}[verdict.outcome]


def _difference(verdict: Verdict | None) -> str:
    if verdict is None or math.isnan(verdict.difference):
        return ""
    ends = "" if math.isinf(verdict.low) else f" [{verdict.low:+.4f}, {verdict.high:+.4f}]"
    return f"{verdict.difference:+.4f}{ends}"


def _name(row: Row) -> tuple[str, str]:
    return row.label, "" if row.ratio is None else f"{100 * row.ratio:g} %"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return aligned lines of a table; the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    aligned = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in [aligned[0], rule, *aligned[1:]])


def write_csv(runs: Sequence[dict[str, Any]], failed: dict[str, str], metric: str, path: Path) -> None:
    """Write one line per run, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["method", "ratio", "seed", "status", metric, *CSV_COLUMNS, "init_args"])
    for run in runs:
        status = "finished" if "metrics" in run else failed.get(run["name"], "not run")
        found = [run.get("metrics", {}).get(metric, ""), *(run.get(name, "") for name in CSV_COLUMNS)]
        ratio = "" if run["ratio"] is None else run["ratio"]
        writer.writerow([run["label"], ratio, run["seed"], status, *found, json.dumps(run["init_args"])])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
