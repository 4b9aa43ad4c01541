"""SeTa by plain loops: the best 1-D grouping by exhaustive dynamic programming, and the window of an epoch."""

from __future__ import annotations

import math


def inertia(values, groups):
    """Sum of squared distances to the group means; groups are lists of positions."""
    total = 0.0
    for group in groups:
        mean = math.fsum(values[i] for i in group) / len(group)
        total += math.fsum((values[i] - mean) ** 2 for i in group)
    return total


def best_inertia(values, num_groups):
    """Least inertia of at most ``num_groups`` intervals."""
    values = sorted(values)
    n = len(values)
    best = [0.0] + [math.inf] * n
    for _ in range(num_groups):
        new = [0.0] + [math.inf] * n
        for end in range(1, n + 1):
            for start in range(end):
                new[end] = min(new[end], best[start] + inertia(values, [range(start, end)]))
        best = new
    return best[n]


def window(epoch, num_groups, window_scale):
    """Groups kept in an epoch."""
    width = max(1, round(num_groups * window_scale))
    if epoch == 0:
        return list(range(num_groups))
    start = epoch % (num_groups - width + 1)
    return list(range(start, start + width))
