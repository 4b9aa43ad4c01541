"""How each method is set so that it saves a given share of the sample-steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arguments = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]
"""What a method is set to, and the share of the sample-steps that it saves then; both rising."""


class UnreachableError(ValueError):
    """A share that a method cannot save; the message says which it can."""


def _after(first_full: int) -> Callable[[int, Arguments], float]:
    """Return the share of a run's epochs that may prune, of a method that trains on everything in its first ones."""
    return lambda max_epochs, given: 1 - min(1, max(given["warmup_epochs"], first_full) / max_epochs)


_after_warmup, _after_first = _after(0), _after(1)


def _middle(max_epochs: int, given: Arguments) -> float:
    """Return the share of a run's batches on which SelectiveBackprop is active."""
    start, end, interrupt = given["start"], given["end"], given["interrupt"]
    active = [epoch for epoch in range(given["warmup_epochs"], max_epochs) if start <= epoch / max_epochs < end]
    return len(active) / max_epochs * (1 - 1 / interrupt if interrupt else 1)


def _prune_ratio(drop: float) -> dict[str, Any]:
    return {"prune_ratio": drop}


def _two_stages(drop: float) -> dict[str, Any]:
    return {"explore_ratio": math.sqrt(1 - drop), "exploit_ratio": math.sqrt(1 - drop)}


_WARMUP = "Epochs of the warm-up are full."
_FIRST = "Its first epoch is full."


@dataclass(frozen=True)
class Setting:
    """How one method is set.

    Args:
        arguments: The arguments that leave out a share of what the method may prune.
        most: Largest such share that is asked for.
        prunable: Share of a run's sample-steps that it may prune, by the number of epochs and all of its arguments.
        pilots: Shares at which a run has to measure what is saved, as it depends on the losses. None: it does not.
        bound: Why it reaches no further, and what to do.
    """

    arguments: Callable[[float], dict[str, Any]] = _prune_ratio
    most: float = 0.99
    prunable: Callable[[int, Arguments], float] = _after_warmup
    pilots: tuple[float, ...] = ()
    bound: str = _WARMUP

    def fixed_by(self, given: Arguments) -> bool:
        """Return whether a method with these arguments has its ratio already."""
        return any(name in given for name in ("prune_ratio", *self.arguments(0.5)))


SETTINGS: dict[str, Setting] = {
    # each epoch leaves out a fixed share
    "RandomPruning": Setting(),
    "RS2": Setting(),
    "StaticPruning": Setting(),
    # keeps explore * exploit of each epoch; both stages alike (the paper's 30 % kept are 0.5 * 0.6)
    "OrderDP": Setting(_two_stages),
    # the first epoch is full; RePB adapts its ratio to hold the target
    "EpsilonGreedy": Setting(prunable=_after_first, bound=_FIRST),
    "UCB": Setting(prunable=_after_first, bound=_FIRST),
    "ImportanceSampling": Setting(prunable=_after_first, bound=_FIRST),
    "RePB": Setting(lambda drop: {"target_keep": 1 - drop}, 0.95, _after_first, bound=_FIRST),
    # leaves out a share of the below-mean samples, in the epochs before annealing
    "InfoBatch": Setting(
        most=0.9,
        pilots=(0.5,),
        bound="It only leaves out samples below the mean loss, at most 90 % of them since the others weigh 10, not "
        "in the first epoch and not while it anneals (`anneal_ratio`). Leave it out at this ratio, or give it with "
        "`anneal_ratio: 1.0` in a file of methods.",
    ),
    # a random share first, then what is outside the window
    "SeTa": Setting(
        pilots=(0.0, 0.5),
        bound="Its window alone leaves out the least share. Leave it out at this ratio, or give it with another "
        "`window_scale` in a file of methods.",
    ),
    # leave out a share of each batch, of which at least one sample stays
    "DivBS": Setting(most=0.9),
    "RHOLoss": Setting(most=0.9),
    "SelectiveBackprop": Setting(
        most=0.9,
        prunable=_middle,
        bound="It is active from `start` to `end` of the run, and not on every `interrupt`-th batch. Leave it out at "
        "this ratio, or give it with `start: 0.0`, `end: 1.0` and `interrupt: 0` in a file of methods.",
    ),
}
"""One row per method. A method that wraps another is set by that one's row."""

WRAPPERS = ("AlignPrune", "BatchLossScore")
"""Methods that wrap a ``base``, which then saves less: the undecided stay, or other scores rank."""
WRAPPED_PILOTS = (0.25, 0.5, 0.9)
"""Pilots of a wrapped method, besides its own."""

NEEDS_FILE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(WRAPPERS, ("it ranks for another method", "base: {class_path: InfoBatch}")),
    "RHOLoss": ("it needs the losses of another model", "irreducible_losses: FILE.npz"),
    "StaticPruning": ("it needs a file of scores", "scores: FILE.npz"),
    "IES": ("none of its arguments is a ratio, what it saves follows from its threshold", "threshold: 0.001"),
}
"""Methods that a name alone does not set: why, and what arguments a file of methods has to give."""


def known_curve(setting: Setting, max_epochs: int, given: Arguments) -> Curve:
    """Return what a method without pilots saves.

    Args:
        setting: Its row of :data:`SETTINGS`.
        max_epochs: Epochs of the run.
        given: Its arguments, defaults included.
    """
    return [(0.0, 0.0), (setting.most, setting.most * setting.prunable(max_epochs, given))]


def measured_curve(setting: Setting, pilots: Curve) -> Curve:
    """Return what a method saves, from what its pilots saved; beyond the last one it is taken to go on straight.

    Settings that save no more than a lower one are left out.

    Args:
        setting: Its row of :data:`SETTINGS`.
        pilots: What they were set to and saved. Set to 0, nothing is saved, unless a pilot tells.

    Example:
        >>> measured_curve(SETTINGS["InfoBatch"], [(0.5, 0.25)])
        [(0.0, 0.0), (0.5, 0.25), (0.9, 0.45)]
    """
    points = sorted({0.0: 0.0, **dict(pilots)}.items())
    (before, less), (last, saved) = points[-2:]
    if last < setting.most:
        points.append((setting.most, saved + (setting.most - last) * (saved - less) / (last - before)))
    return [point for i, point in enumerate(points) if all(point[1] > saved for _, saved in points[:i])]


def solve(label: str, setting: Setting, ratio: float, curve: Curve) -> dict[str, Any]:
    """Return the arguments with which a method saves ``ratio`` of the sample-steps of a run.

    Args:
        label: The method's name, for messages.
        setting: Its row of :data:`SETTINGS`.
        ratio: Share of all sample-steps of the run to save, in (0, 1).
        curve: What it saves; in between it is taken to be straight.

    Raises:
        UnreachableError: If the method cannot save that share.

    Example:
        >>> solve("RandomPruning", SETTINGS["RandomPruning"], 0.25, [(0.0, 0.0), (1.0, 0.5)])
        {'prune_ratio': 0.5}
    """
    least, most = curve[0][1], curve[-1][1]
    if not least <= ratio <= most:
        measured = " (measured by pilot runs)" if setting.pilots else ""
        low = f"at least {least:.3f} and " if least > 0 else ""
        raise UnreachableError(
            f"Expected `--prune_ratios` that {label} can reach, {low}at most {most:.3f}{measured}, but got {ratio:g}. "
            f"{setting.bound}"
        )
    drops, saved = zip(*curve, strict=True)
    return setting.arguments(float(np.interp(ratio, saved, drops)))
