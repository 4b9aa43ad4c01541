"""A search for the setting with which a rule selects so many samples."""

from __future__ import annotations

from collections.abc import Callable

from lightning_prune.core.plan import Selection

_MOST_TRIALS = 14


def nearest(
    select: Callable[[float], Selection], target: int, *, most: float, guess: float, tolerance: int = 0
) -> Selection:
    """Return the selection whose number of samples is nearest to ``target``.

    Args:
        select: Selects with a share left out, in [0, ``most``]: the larger it is the fewer, as a rule.
        target: Number of samples.
        most: Largest share that is tried.
        guess: Share that is tried first.
        tolerance: By how much the number may differ.

    Example:
        >>> import torch
        >>> len(nearest(lambda drop: Selection(torch.arange(round(100 - 60 * drop))), 70, most=0.9, guess=0.3))
        70
    """
    low, high = 0.0, most
    guess = min(max(guess, low), high)
    best = selection = select(guess)
    sizes: dict[float, int] = {guess: len(selection)}
    for _ in range(_MOST_TRIALS):
        excess = len(selection) - target
        if abs(excess) < abs(len(best) - target):
            best = selection
        if abs(excess) <= tolerance:
            break
        if excess > 0:
            low = max(low, guess)
        else:
            high = min(high, guess)
        if (end := high if excess > 0 else low) not in sizes:  # is it within reach at all?
            guess = end
        elif (sizes[high] - target) * (sizes[low] - target) >= 0 or high - low < 1e-9:
            break
        else:
            part = (sizes[low] - target) / (sizes[low] - sizes[high])  # straight in between, but never at an end
            guess = low + (high - low) * min(max(part, 0.1), 0.9)
        selection = select(guess)
        sizes[guess] = len(selection)
    return best
