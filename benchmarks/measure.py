"""Timing rows: interleaved rounds, CPU time, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One claim: the ratio of two timings, over rounds that each measured both."""

    name: str
    n: int
    ratios: list[float]
    target: str

    def __str__(self) -> str:
        low, median, high = min(self.ratios), statistics.median(self.ratios), max(self.ratios)
        return (
            f"| {self.name} | {self.n:,} | {len(self.ratios)} | {median:.2f} | {low:.2f}..{high:.2f} | {self.target} |"
        )


HEADER = "| ratio | n | rounds | median | min..max | must |\n|---|---|---|---|---|---|"


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def one_thread() -> None:
    """Pin torch to one thread: with more, OpenMP's barriers on shared cores drown small operations."""
    torch.set_num_threads(1)
