"""A point of a run: how far it is, by whatever ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Moment:
    """The start of an epoch.

    Args:
        epoch: Epoch number, from 0.
        max_epochs: Epochs of the run; None: no limit.
        step: Optimizer steps done.
        max_steps: Optimizer steps of the run; None: no limit.

    Example:
        >>> Moment(5, max_epochs=20).progress
        0.25
    """

    epoch: int
    max_epochs: int | None = None
    step: int = 0
    max_steps: int | None = None

    @property
    def progress(self) -> float:
        """Share of the run that is done: of ``max_steps``, or else, by whole epochs, of ``max_epochs``."""
        if self.max_steps is not None:
            return min(1.0, self.step / self.max_steps)
        return min(1.0, self.epoch / self.max_epochs) if self.max_epochs else 0.0

    @property
    def is_over(self) -> bool:
        """Whether the run has come to its end."""
        steps_are = self.max_steps is not None and self.step >= self.max_steps
        return steps_are or (self.max_epochs is not None and self.epoch >= self.max_epochs)
