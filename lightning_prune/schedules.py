"""Ratios that change over a run: functions of its progress, for the ``prune_ratio`` of every method that reads it anew.

Any function of a number in [0, 1] that returns a ratio will do: ``InfoBatch(lambda progress: 0.5 * progress)``. Those
here can be named in yaml, copied, pickled and compared. The progress is that at an epoch's start: the share of
``max_steps`` that is done, or else of ``max_epochs``. Nothing of a schedule is in a checkpoint: a resumed run asks it
again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from lightning_prune.core.checks import check_ratio

__all__ = ["Cosine", "Linear", "Steps"]


@dataclass(frozen=True)
class _Moving(ABC):
    """Base of ratios that move from ``start`` to ``end`` between two shares of the run."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end", "begin", "until"):
            check_ratio(name, getattr(self, name), closed_high=True)
        if self.begin > self.until:
            raise ValueError(f"Expected `begin` <= `until`, but got {self.begin} and {self.until}.")

    def __call__(self, progress: float) -> float:
        """Return the ratio at a progress in [0, 1]."""
        if progress >= self.until:
            return self.end
        if progress <= self.begin:
            return self.start
        way = self._way((progress - self.begin) / (self.until - self.begin))
        return (1 - way) * self.start + way * self.end

    @abstractmethod
    def _way(self, part: float) -> float:
        """Return how much of the way is done when a part of the time is over, both in [0, 1]."""


@final
@dataclass(frozen=True)
class Linear(_Moving):
    """A ratio that moves evenly from ``start`` to ``end``.

    Args:
        start: Ratio up to ``begin``, in [0, 1].
        end: Ratio from ``until`` on, in [0, 1].
        begin: Share of the run, in [0, 1], at which it begins to move.
        until: Share of the run, in [0, 1], at which it has arrived.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If it is out of range.

    Example:
        >>> [Linear(0.0, 0.6, until=0.5)(progress) for progress in (0.0, 0.25, 0.9)]
        [0.0, 0.3, 0.6]
    """

    def _way(self, part: float) -> float:
        return part


@final
@dataclass(frozen=True)
class Cosine(_Moving):
    """A ratio that moves from ``start`` to ``end`` along half a cosine: slowly at both ends.

    Args:
        start: Ratio up to ``begin``, in [0, 1].
        end: Ratio from ``until`` on, in [0, 1].
        begin: Share of the run, in [0, 1], at which it begins to move.
        until: Share of the run, in [0, 1], at which it has arrived.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If it is out of range.

    Example:
        >>> [round(Cosine(0.6, 0.0)(progress), 2) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.6, 0.51, 0.3, 0.0]
    """

    def _way(self, part: float) -> float:
        return (1 - math.cos(math.pi * part)) / 2


@final
@dataclass(frozen=True)
class Steps:
    """A ratio that stays until the next one.

    Args:
        ratios: Ratios in [0, 1] by the share of the run, in [0, 1], from which they hold; the first from 0 on.

    Raises:
        TypeError: If a ratio or a share is not a number.
        ValueError: If there is none, none from 0 on, or one is out of range.

    Example:
        >>> [Steps({0.0: 0.2, 0.5: 0.6, 0.9: 0.0})(progress) for progress in (0.0, 0.5, 0.95)]
        [0.2, 0.6, 0.0]
    """

    ratios: Mapping[float, float]

    def __post_init__(self) -> None:
        for begin, ratio in self.ratios.items():
            check_ratio("ratios", begin, closed_high=True)
            check_ratio(f"ratios[{begin}]", ratio, closed_high=True)
        if 0 not in self.ratios:
            raise ValueError(
                f"Expected `ratios` to say with which ratio the run begins, as in `{{0: 0.0, 0.5: 0.3}}`, but got "
                f"{dict(self.ratios)}, without a key 0."
            )

    def __call__(self, progress: float) -> float:
        """Return the ratio at a progress in [0, 1]."""
        return self.ratios[max(begin for begin in self.ratios if begin <= progress)]
