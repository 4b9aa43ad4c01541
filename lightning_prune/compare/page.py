"""A page of a comparison: its methods side by side, and the samples that they disagree on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.report import PruningReport, RunRecord, write_report

NAME = "report.html"


def make_report(spec: dict[str, Any]) -> list[PruningReport]:
    """Return the callback by which a run leaves its record, as its spec wants it; none where it wants none."""
    given = spec.get("report")
    return [] if given is None else [PruningReport(**{**given, "path": Path(spec["folder"]) / "report.md"})]


def without_reports(callbacks: Sequence[Callback], ours: Sequence[Callback]) -> list[Callback]:
    """Return a run's own callbacks without a `PruningReport`, whose settings the comparison's takes over."""
    theirs = [callback for callback in callbacks if isinstance(callback, PruningReport)]
    for report in ours:
        if theirs and isinstance(report, PruningReport):
            report.images, report.targets, report.metric = theirs[-1].images, theirs[-1].targets, theirs[-1].metric
    return [callback for callback in callbacks if callback not in theirs]


def record_of(spec: dict[str, Any], reports: Sequence[PruningReport]) -> dict[str, str]:
    """Return where a run has left its record, by its folder."""
    places = [report.record_path for report in reports if report.record_path is not None]
    return {"record": os.path.relpath(places[0], spec["folder"])} if places else {}


def write_page(runs: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write a page of the runs that have left a record: the first seed's of each method and ratio.

    Args:
        runs: What came out of the runs of a comparison.
        folder: The comparison's.

    Returns:
        The written file, if any run has left a record: Markdown where the extra ``report`` is not installed.
    """
    records = []
    for run in runs:
        path = folder / "runs" / run["name"] / run.get("record", "none")
        if path.is_file():
            record = RunRecord.load(path)
            record.meta["name"] = run["label"] if run["ratio"] is None else f"{run['label']} at {run['ratio']:g}"
            records.append(record)
    if not records:
        return []
    try:
        return [write_report(records, folder / NAME)]
    except ModuleNotFoundError as error:
        rank_zero_warn(f"The report of the comparison is Markdown, not a page. {error}")
        return [write_report(records, (folder / NAME).with_suffix(".md"))]
    except ValueError as error:  # datasets of different lengths, such as splits by chance
        rank_zero_warn(f"There is no page of the comparison. {error}")
        return []
