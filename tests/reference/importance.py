"""Importance sampling by plain loops."""

from __future__ import annotations

import math


def inclusion(importance, k):
    """Probabilities min(1, tau q) that add up to k: samples are set to 1 one after another, the highest first."""
    order = sorted(range(len(importance)), key=lambda i: -importance[i])
    for num_full in range(len(order) + 1):
        rest = math.fsum(importance[i] for i in order[num_full:])
        left = k - num_full
        if rest == 0:
            share = left / max(1, len(order) - num_full)
            return [1.0 if importance[i] > 0 else share for i in range(len(importance))]
        if importance[order[num_full]] * left <= rest:
            full = set(order[:num_full])
            return [1.0 if i in full else importance[i] * left / rest for i in range(len(importance))]
    raise AssertionError


def systematic(chances, order, offset):
    """Ids on which a point offset, offset + 1, ... falls when the chances are laid end to end in this order."""
    drawn, start, point = [], 0.0, offset
    for i in order:
        end = start + chances[i]
        if start < point <= end:
            drawn.append(i)
            point += 1
        start = end
    return sorted(drawn)
