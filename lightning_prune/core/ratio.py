"""How a method is set so that it saves a given share of the sample-steps of a run.

A method says so itself, by ``set_by_ratio = RatioSetting(...)`` in its class. Set to leave out a share of what it may
prune, it saves some share of the run: that is its curve, known beforehand or measured by pilot runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.moment import Moment

Ratio = float | Callable[[float], float]
"""A ratio, or a schedule of it: a function of the run's progress, in [0, 1]; see `lightning_prune.schedules`."""

Arguments = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]
"""What a method is set to, and the share of the sample-steps that it saves then; both rising."""


@final
class UnreachableError(ValueError):
    """A share that a method cannot save; the message says which it can."""


def check_schedule(name: str, value: object, **bounds: Any) -> None:
    """Raise unless ``value`` is a ratio for which :func:`check_ratio` holds, or a function of the progress to such.

    A function is asked at every hundredth of the run.

    Args:
        name: Name of the argument.
        value: What was given.
        bounds: Those of :func:`check_ratio`.

    Raises:
        TypeError: If it is neither, or the function does not return numbers.
        ValueError: If it is out of range.
    """
    if not callable(value):
        check_ratio(name, value, **bounds)
        return
    for hundredth in range(101):
        ratio_at(name, value, hundredth / 100, **bounds)


def ratio_at(name: str, value: Ratio, progress: float, **bounds: Any) -> float:
    """Return the ratio that holds at a point of the run, checked as :func:`check_ratio` does.

    Example:
        >>> ratio_at("prune_ratio", lambda progress: 0.5 * progress, 0.5)
        0.25
    """
    if not callable(value):
        return value
    ratio = value(progress)
    check_ratio(f"{name}({progress:g})", ratio, **bounds)
    return float(ratio)


def always(moment: Moment, given: Arguments) -> float:
    """Return 1: a method that may prune each epoch after the warm-up."""
    return 1.0


def after_first(moment: Moment, given: Arguments) -> float:
    """Return 1, but 0 for the first epoch, in which nothing is known."""
    return float(moment.epoch > 0)


def as_prune_ratio(drop: float) -> dict[str, Any]:
    """Return the argument ``prune_ratio`` that leaves out a share ``drop``."""
    return {"prune_ratio": drop}


@final
@dataclass(frozen=True)
class RatioSetting:
    """How a ratio sets a method.

    Args:
        arguments: The arguments of the method that leave out a share of what it may prune.
        most: Largest such share that is asked for.
        active: Share of an epoch that it may prune, in [0, 1], by its place in the run and all of its arguments; the
            warm-up left aside.
        read_in: Where it reads the arguments: in ``select`` for the epoch that begins, in ``on_epoch_recorded`` for the
            next one, or in ``setup_columns`` for the whole run. A method that picks within batches reads them in each.
        pilots: Shares at which a run has to measure what is saved, as it depends on the losses. None: it does not.
        bound: Why it reaches no further, and what to do.
    """

    arguments: Callable[[float], dict[str, Any]] = as_prune_ratio
    most: float = 0.99
    active: Callable[[Moment, Arguments], float] = always
    read_in: Literal["select", "on_epoch_recorded", "setup_columns"] = "select"
    pilots: tuple[float, ...] = ()
    bound: str = "Epochs of the warm-up are full."

    def prunable(self, max_epochs: int, given: Arguments) -> float:
        """Return the share of a run's sample-steps that it may prune, by its epochs and all of its arguments."""
        epochs = range(given.get("warmup_epochs", 0), max_epochs)
        return sum(self.active(Moment(epoch, max_epochs), given) for epoch in epochs) / max_epochs

    def fixed_by(self, given: Arguments) -> bool:
        """Return whether a method with these arguments has its ratio already."""
        return any(name in given for name in ("prune_ratio", *self.arguments(self.most)))

    def measured_at(self, *pilots: float) -> RatioSetting:
        """Return the same with further pilots, for a method whose curve is not that of this setting alone."""
        return replace(self, pilots=tuple(sorted({*self.pilots, *pilots})))


FIRST_FULL = RatioSetting(active=after_first, bound="Its first epoch is full.")
"""Of methods that leave out a fixed share of each epoch but the first."""

MEASURED = RatioSetting(
    most=0.9,
    pilots=(0.0, 0.5, 0.9),
    bound="Its class does not say how a ratio sets it, so its `prune_ratio` was tried from 0 to 0.9. Ask for "
    "less, or have the class say more: `set_by_ratio = lightning_prune.core.ratio.RatioSetting(...)`.",
)
"""Of methods that take a ``prune_ratio`` and say nothing: whatever it does, what it saves is measured."""


def known_curve(setting: RatioSetting, max_epochs: int, given: Arguments) -> Curve:
    """Return what a method without pilots saves.

    Args:
        setting: How a ratio sets it.
        max_epochs: Epochs of the run.
        given: Its arguments, defaults included.

    Example:
        >>> known_curve(FIRST_FULL, 10, {})
        [(0.0, 0.0), (0.99, 0.891)]
    """
    return [(0.0, 0.0), (setting.most, setting.most * setting.prunable(max_epochs, given))]


def measured_curve(setting: RatioSetting, pilots: Curve) -> Curve:
    """Return what a method saves, from what its pilots saved; beyond the last one it is taken to go on straight.

    Settings that save no more than a lower one are left out.

    Args:
        setting: How a ratio sets it.
        pilots: What they were set to and saved. Set to 0, nothing is saved, unless a pilot tells.

    Example:
        >>> measured_curve(RatioSetting(most=0.9, pilots=(0.5,)), [(0.5, 0.25)])
        [(0.0, 0.0), (0.5, 0.25), (0.9, 0.45)]
    """
    points = sorted({0.0: 0.0, **dict(pilots)}.items())
    (before, less), (last, saved) = points[-2:]
    if last < setting.most:
        points.append((setting.most, saved + (setting.most - last) * (saved - less) / (last - before)))
    return [point for i, point in enumerate(points) if all(point[1] > saved for _, saved in points[:i])]


def solve(
    label: str, setting: RatioSetting, ratio: float, curve: Curve, *, argument: str = "prune_ratio"
) -> dict[str, Any]:
    """Return the arguments with which a method saves ``ratio`` of the sample-steps of a run.

    Args:
        label: The method's name, for messages.
        setting: How a ratio sets it.
        ratio: Share of all sample-steps of the run to save, in (0, 1).
        curve: What it saves; in between it is taken to be straight.
        argument: Where the ratio was given, for messages.

    Raises:
        UnreachableError: If the method cannot save that share.

    Example:
        >>> solve("Random", RatioSetting(), 0.25, [(0.0, 0.0), (1.0, 0.5)])
        {'prune_ratio': 0.5}
    """
    least, most = curve[0][1], curve[-1][1]
    if not least <= ratio <= most:
        measured = " (measured by pilot runs)" if setting.pilots else ""
        low = f"at least {least:.3f} and " if least > 0 else ""
        raise UnreachableError(
            f"Expected `{argument}` that {label} can reach, {low}at most {most:.3f}{measured}, but got {ratio:g}. "
            f"{setting.bound}"
        )
    drops, saved = zip(*curve, strict=True)
    return setting.arguments(float(np.interp(ratio, saved, drops)))
