"""Reports of pruned runs: one summary, as a page, as Markdown, or as JSON."""

from lightning_prune.report.callback import PruningReport
from lightning_prune.report.record import RunRecord
from lightning_prune.report.summary import summarize
from lightning_prune.report.write import render, write_report

__all__ = ["PruningReport", "RunRecord", "render", "summarize", "write_report"]
