"""RePB by plain loops (Eqs. 1-3), with given coins."""

from __future__ import annotations

import math

from tests.reference.importance import inclusion


def retain(scores, windows, ratio, coins):
    """Positions that stay."""
    kept = []
    for i, (score, window, coin) in enumerate(zip(scores, windows, coins, strict=True)):
        finite = [s for s, w in zip(scores, windows, strict=True) if w == window and math.isfinite(s)]
        mean = math.fsum(finite) / len(finite) if finite else math.nan
        if not math.isfinite(score) or not score < mean or coin >= ratio:
            kept.append(i)
    return kept


def weights(rows):
    """Weights E / N_i after epochs whose members are ``rows`` of 0 and 1."""
    return [len(rows) / sum(column) for column in zip(*rows, strict=True)]


def chances(scores, windows, ratio):
    """Chances to stay by the importance rule: as many in each window as by the mean, in proportion to the scores."""
    result = [1.0] * len(scores)
    for window in set(windows):
        finite = [i for i, w in enumerate(windows) if w == window and math.isfinite(scores[i])]
        if not finite:
            continue
        stay = len(retain([scores[i] for i in finite], [0] * len(finite), 1.0, [0.0] * len(finite)))
        importance = [max(0.0, scores[i]) for i in finite]
        mean = math.fsum(importance) / len(finite)
        importance = [max(value, 1e-6 * mean) if mean > 0 else 1.0 for value in importance]
        expected = len(finite) - ratio * (len(finite) - stay)
        for i, chance in zip(finite, inclusion(importance, expected), strict=True):
            result[i] = chance
    return result
