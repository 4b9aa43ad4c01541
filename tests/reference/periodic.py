"""Epsilon-greedy and UCB by plain loops."""

from __future__ import annotations

import math


def choose(scores, k, epsilon):
    """Samples that are kept for sure, those that may be by a tie, and the number of random places."""
    num_random = math.floor(k * epsilon + 1e-6)
    ranks = [score if math.isfinite(score) else math.inf for score in scores]
    places = k - num_random
    if places == 0:
        return set(), set(), num_random
    cut = sorted(ranks, reverse=True)[places - 1]
    sure = {i for i, rank in enumerate(ranks) if rank > cut}
    return sure, {i for i, rank in enumerate(ranks) if rank == cut}, num_random


def average(losses, smoothing):
    """Mean and variance after these losses of one sample, in the order of their arrival."""
    mean = var = None
    for loss in losses:
        if not math.isfinite(loss):
            continue
        if mean is None:
            mean, var = loss, 0.0
        else:
            var = (1 - smoothing) * var + smoothing * (loss - mean) ** 2
            mean = (1 - smoothing) * mean + smoothing * loss
    return mean, var


def choice_epochs(epochs, warmup, period):
    """Epochs in which a choice is made."""
    first = max(1, warmup)
    return [e for e in range(first, epochs) if e == first or e % period == 0]
