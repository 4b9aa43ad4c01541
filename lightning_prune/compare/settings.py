"""How each method is set so that it saves a given share of the sample-steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST_DROPPED = 0.99
"""Largest share of an epoch, or of what a method may leave out of it, that is asked for."""


class UnreachableError(ValueError):
    """A share that a method cannot save; the message says which it can."""


@dataclass(frozen=True)
class Setting:
    """How one method is set.

    Args:
        arguments: Arguments that `solve` returns. A method given with one of them is run as it is.
        solve: Arguments that save a share: from that share of the epochs that may prune, and from what the pilot run
            saved (0 without one).
        most: Largest share of the epochs that may prune that can be saved, from what the pilot saved.
        least: Smallest one, likewise.
        first_full: Epochs at the start in which the method has nothing to go by, and trains on everything.
        pilot: Arguments of the pilot run. None: what is saved does not depend on the losses, no pilot is needed.
    """

    arguments: tuple[str, ...]
    solve: Callable[[float, float], dict[str, Any]]
    most: Callable[[float], float] = lambda pilot: MOST_DROPPED
    least: Callable[[float], float] = lambda pilot: 0.0
    first_full: int = 0
    pilot: dict[str, Any] | None = field(default=None)

    def prunable(self, max_epochs: int, warmup_epochs: int) -> float:
        """Return the share of a run's epochs that may prune; a pilot's saving has it in already."""
        return 1.0 if self.pilot is not None else 1 - min(1, max(warmup_epochs, self.first_full) / max_epochs)


def _group_mass(pilot: float) -> float:
    """Return the share of the samples in SeTa's window, over the run, from what a pilot with 10 % random drop saved."""
    return (1 - pilot) / 0.9


SETTINGS: dict[str, Setting] = {
    # each epoch leaves out a fixed share
    "RandomPruning": Setting(("prune_ratio",), lambda drop, _: {"prune_ratio": drop}),
    # keeps explore * exploit of each epoch; both stages alike (the paper's 30 % kept are 0.5 * 0.6)
    "OrderDP": Setting(
        ("explore_ratio", "exploit_ratio"),
        lambda drop, _: {"explore_ratio": math.sqrt(1 - drop), "exploit_ratio": math.sqrt(1 - drop)},
    ),
    # adapts its ratio to hold the target; the first epoch is full
    "RePB": Setting(
        ("target_keep", "prune_ratio"),
        lambda drop, _: {"target_keep": 1 - drop},
        most=lambda _: 0.95,
        first_full=1,
    ),
    # leaves out a share of the below-mean samples, in the epochs before annealing: in proportion to prune_ratio
    "InfoBatch": Setting(
        ("prune_ratio",),
        lambda drop, pilot: {"prune_ratio": 0.5 * drop / pilot},
        most=lambda pilot: MOST_DROPPED / 0.5 * pilot,
        pilot={"prune_ratio": 0.5},
    ),
    # a random share first, then what is outside the window: kept is (1 - prune_ratio) * mass of the window's groups
    "SeTa": Setting(
        ("prune_ratio",),
        lambda drop, pilot: {"prune_ratio": 1 - (1 - drop) / _group_mass(pilot)},
        most=lambda pilot: 1 - (1 - MOST_DROPPED) * _group_mass(pilot),
        least=lambda pilot: 1 - _group_mass(pilot),
        pilot={"prune_ratio": 0.1},
    ),
}
"""One row per method: what is set, from what, and how far it reaches."""


def solve(
    label: str, setting: Setting, ratio: float, max_epochs: int, warmup_epochs: int, pilot: float
) -> dict[str, Any]:
    """Return the arguments with which a method saves ``ratio`` of the sample-steps of a run.

    Args:
        label: The method's name, for messages.
        setting: Its row of :data:`SETTINGS`.
        ratio: Share of all sample-steps of the run to save, in (0, 1).
        max_epochs: Epochs of the run.
        warmup_epochs: Full epochs at its start.
        pilot: What the pilot run saved; 0 without one.

    Raises:
        UnreachableError: If the method cannot save that share.

    Example:
        >>> solve("RePB", SETTINGS["RePB"], 0.45, 10, 0, 0.0)
        {'target_keep': 0.5}
    """
    prunable = setting.prunable(max_epochs, warmup_epochs)
    least, most = setting.least(pilot) * prunable, setting.most(pilot) * prunable
    if not least <= ratio <= most:
        measured = " (measured by a pilot run)" if setting.pilot is not None else ""
        low = f"at least {least:.3f} and " if least > 0 else ""
        raise UnreachableError(
            f"Expected `--prune_ratios` that {label} can reach in {max_epochs} epochs, {low}at most {most:.3f}"
            f"{measured}, but got {ratio:g}. {_why(label)}"
        )
    return setting.solve(ratio / prunable, pilot)


def _why(label: str) -> str:
    """Return what bounds a method."""
    return {
        "InfoBatch": "It only leaves out samples below the mean loss, not in the first epoch and not while it anneals "
        "(`anneal_ratio`); leave it out at this ratio, or give it with `anneal_ratio: 1.0` in a file of methods.",
        "SeTa": "Its window alone leaves out the least share; leave it out at this ratio, or give it with another "
        "`window_scale` in a file of methods.",
        "RePB": "Its first epoch is full.",
    }.get(label, "Epochs of the warm-up are full.")
