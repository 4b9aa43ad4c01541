"""The bar of a comparison: which runs go on, at which epoch, and how long the rest takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from tqdm.auto import tqdm  # type: ignore[import-untyped]

_REFRESH_SECONDS = 0.5


def cost(spec: dict[str, Any]) -> float:
    """Return how many full epochs a run takes, about."""
    return float(spec["epochs"] or spec["max_epochs"]) * (1 - (spec["ratio"] or 0.0))


@final
class Bar:
    """A bar over runs.

    Args:
        num_runs: Number of runs, those that are there already included.
        num_jobs: Runs at a time.
    """

    def __init__(self, num_runs: int, num_jobs: int) -> None:
        layout = "{desc}: {n_fmt}/{total_fmt} runs [{elapsed}{postfix}]"
        self.bar = tqdm(total=num_runs, desc="compare", bar_format=layout)
        self.num_jobs = num_jobs
        self.waiting: dict[str, dict[str, Any]] = {}
        self.started: dict[str, float] = {}
        self.done_seconds = self.done_cost = 0.0
        self._shown = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *args: object) -> None:
        self.bar.close()

    def expect(self, num_runs: int, specs: Sequence[dict[str, Any]]) -> None:
        """Set the number of all runs, and those of them that are to be made next."""
        self.bar.total = max(self.bar.total, num_runs)
        self.waiting |= {spec["name"]: spec for spec in specs}

    def update(self, spec: dict[str, Any]) -> None:
        """Count a run that has ended, or that was there already."""
        self.waiting.pop(spec["name"], None)
        if spec["name"] in self.started:
            self.done_seconds += time.monotonic() - self.started.pop(spec["name"])
            self.done_cost += cost(spec)
        self.bar.update()

    def tick(self, running: Sequence[dict[str, Any]]) -> None:
        """Show what goes on."""
        now = time.monotonic()
        for spec in running:
            if spec["name"] not in self.started:
                self.started[spec["name"]] = now
                with contextlib.suppress(OSError):
                    (Path(spec["folder"]) / "epoch").unlink()  # of an earlier try
        if now - self._shown > _REFRESH_SECONDS:
            self._shown = now
            shown = "; ".join(f"{spec['name']} epoch {_epoch(spec)}/{_epochs(spec)}" for spec in running)
            self.bar.set_postfix_str(f"{shown}; {self.remaining(running)}")

    def remaining(self, running: Sequence[dict[str, Any]]) -> str:
        """Return in words how long the runs that are known will take."""
        seconds, done = self.done_seconds, self.done_cost
        for spec in running:
            seconds += time.monotonic() - self.started[spec["name"]]
            done += cost(spec) * _epoch(spec) / _epochs(spec)
        left = sum(map(cost, self.waiting.values())) + self.done_cost - done
        return f"about {duration(left * seconds / done / self.num_jobs)} left" if done else "time left not known yet"


def _epoch(spec: dict[str, Any]) -> int:
    try:
        return int((Path(spec["folder"]) / "epoch").read_text())
    except (OSError, ValueError):  # not one yet, or just being written
        return 0


def _epochs(spec: dict[str, Any]) -> int:
    return int(spec["epochs"] or spec["max_epochs"])


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(7.2), duration(130), duration(9000)
        ('7 s', '2 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
