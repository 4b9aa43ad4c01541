"""What is left of a run, and the share of its epochs to leave out so that the whole of it saves what it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from lightning_prune.core.moment import Moment

_ITERATIONS = 30
"""Of the bisection of a share: to a thousand-millionth."""

Bounds = tuple[float, float]
"""The least and the largest share of an epoch that a method can leave out."""


@final
@dataclass(frozen=True)
class Rest:
    """What is left to do.

    Attributes:
        trained: Sample-steps that are trained.
        full: Sample-steps that the same epochs would have in full.
        steps: Optimizer steps.
        epochs: Epochs, the last one possibly in part.
    """

    trained: float
    full: float
    steps: float
    epochs: float


@final
@dataclass(frozen=True)
class Outlook:
    """A run as it is expected to go on.

    Args:
        start: Where it is.
        full: Sample-steps of a full epoch.
        step_size: Sample-steps of an optimizer step.
        active: Share of an epoch that may be pruned, by its place in the run.
        now: What can be left out of the coming epoch.
        later: What can be left out of those after it: what was found of the last ones, each as likely as the other.
        shortens: Whether an epoch takes fewer optimizer steps when samples are left out of it.
    """

    start: Moment
    full: float
    step_size: float
    active: Callable[[Moment], float]
    now: Bounds
    later: Sequence[Bounds]
    shortens: bool = True

    def rest(self, share: float, *, now: float | None = None) -> Rest:
        """Play the run to its end, with a share to leave out of each epoch, as far as that can be.

        Args:
            share: Share of each epoch.
            now: Another one for the coming epoch, whatever its bounds.
        """
        start = self.start
        epoch, step, trained, full, epochs = start.epoch, float(start.step), 0.0, 0.0, 0.0
        means: dict[float, float] = {0.0: 0.0}
        steps_left = math.inf if start.max_steps is None else start.max_steps - start.step
        steps = 0.0
        while (start.max_epochs is None or epoch < start.max_epochs) and steps < steps_left:
            active = self.active(Moment(epoch, start.max_epochs, int(step), start.max_steps))
            if epoch == start.epoch:
                left_out = now if now is not None else _within(share, self.now, active)
            else:
                if active not in means:
                    means[active] = sum(_within(share, bounds, active) for bounds in self.later) / len(self.later)
                left_out = means[active]
            own = self.full * (1 - left_out)
            own_steps = max(1.0, math.ceil((own if self.shortens else self.full) / self.step_size - 1e-9))
            part = min(1.0, (steps_left - steps) / own_steps)
            trained, full, epochs = trained + own * part, full + self.full * part, epochs + part
            steps += own_steps * part
            step += own_steps
            epoch += 1
        return Rest(trained, full, steps, epochs)

    def share(self, enough: Callable[[Rest], bool]) -> float:
        """Return the share to leave out of each epoch, so that just enough is saved; 1 where no share is enough.

        Where already the least that the method can leave out saves too much, the coming epoch is full, and later ones
        have to save the more: 0.

        Args:
            enough: Whether a rest is cheap enough.

        Example:
            >>> outlook = Outlook(Moment(0, 10), 100, 10, lambda m: float(m.epoch > 1), (0, 0), [(0.0, 0.9)])
            >>> round(outlook.share(lambda rest: rest.trained <= 600), 3)
            0.5
        """
        if enough(self.rest(0.0)):
            least = _within(0.0, self.now, self.active(self.start))
            return 0.0 if enough(self.rest(0.0, now=least / 2)) else least
        low, high = 0.0, 1.0
        if not enough(self.rest(high)):
            return high
        for _ in range(_ITERATIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if enough(self.rest(middle)) else (middle, high)
        return high


def _within(share: float, bounds: Bounds, active: float) -> float:
    """Return the share of an epoch that is left out where a share is asked for."""
    return min(max(share, bounds[0] * active), bounds[1] * active) if active > 0 else 0.0
