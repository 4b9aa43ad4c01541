"""What a run may cost, as a question to what is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from lightning_prune.core.outlook import Rest

_FORGETTING = 0.6
"""Weight of an epoch's time against that of the next one: a machine may become slower."""
_LEAST_SPREAD = 0.05
"""How far epochs must differ in length, for what all of them take to be told from what their samples take."""


@final
@dataclass(frozen=True)
class Spent:
    """What a run has cost so far.

    Attributes:
        trained: Sample-steps that were trained.
        full: Sample-steps that its epochs would have had in full.
        steps: Optimizer steps.
        seconds: Time.
        pace: Seconds of an epoch, and of each sample-step in it; None: not known yet.
    """

    trained: float = 0.0
    full: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    pace: tuple[float, float] | None = None


@final
@dataclass(frozen=True)
class Goal:
    """What the whole run may cost.

    Args:
        name: The argument that says it.
        value: Its value: the share of the sample-steps of the full run to save, optimizer steps, or hours.
    """

    name: Literal["save", "steps", "hours"]
    value: float

    @property
    def limit(self) -> float:
        """The largest cost that is allowed: a share of the sample-steps, steps, or seconds."""
        return {"save": 1 - self.value, "steps": self.value, "hours": 3600 * self.value}[self.name]

    @property
    def tolerance(self) -> float:
        """By how much a run may miss the limit without a word: a point; a step, or a hundredth of them; two of time."""
        return {"save": 0.01, "steps": max(1.0, 0.01 * self.limit), "hours": 0.02 * self.limit}[self.name]

    @property
    def bound(self) -> str:
        """On which side of what can be reached the value lies that cannot."""
        return "at most" if self.name == "save" else "at least"

    def cost(self, spent: Spent, rest: Rest) -> float | None:
        """Return what the run costs in the end; None: it cannot be known yet."""
        if self.name == "save":
            return (spent.trained + rest.trained) / max(1.0, spent.full + rest.full)
        if self.name == "steps":
            return spent.steps + rest.steps
        if spent.pace is None:
            return None if rest.epochs else spent.seconds
        per_epoch, per_sample = spent.pace
        return spent.seconds + per_epoch * rest.epochs + per_sample * rest.trained

    def is_met(self, spent: Spent, rest: Rest) -> bool:
        """Return whether a run of that rest keeps the limit; one that is not known yet is taken to."""
        cost = self.cost(spent, rest)
        return cost is None or cost <= self.limit

    def says(self, cost: float) -> str:
        """Return a cost as the argument would be given.

        Example:
            >>> Goal("save", 0.4).says(0.7), Goal("hours", 2.0).says(5400)
            ('0.300', '1.5')
        """
        return {"save": f"{1 - cost:.3f}", "steps": f"{cost:.0f}", "hours": f"{cost / 3600:.3g}"}[self.name]


def pace_of(epochs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return the seconds of an epoch, and of each sample-step in it, by least squares; the last epochs count most.

    What an epoch takes whatever it trains (validation, the passes that choose within batches) shows when epochs differ
    in length. Where they hardly do, or that makes no sense, all of the time is put down to the sample-steps.

    Args:
        epochs: Seconds and sample-steps of the last epochs, the last one last.

    Returns:
        The pace; None without any epoch.

    Example:
        >>> pace = pace_of([(12.0, 100.0), (7.0, 50.0)])
        >>> [round(value, 6) for value in pace]
        [2.0, 0.1]
    """
    if not epochs:
        return None
    seconds, trained = np.asarray(epochs, dtype=np.float64).T
    weights = _FORGETTING ** np.arange(len(seconds))[::-1]
    weights /= weights.sum()
    mean_seconds, mean_trained = float(weights @ seconds), float(weights @ trained)
    spread = trained - mean_trained
    variance = float(weights @ spread**2)
    if variance > (_LEAST_SPREAD * mean_trained) ** 2:
        slope = float((weights * spread) @ seconds) / variance
        start = mean_seconds - slope * mean_trained
        if slope > 0 and start >= 0:
            return start, slope
    return 0.0, mean_seconds / max(1.0, mean_trained)
