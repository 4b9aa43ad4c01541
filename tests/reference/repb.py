"""RePB by plain loops (Eqs. 1-3), with given coins."""

from __future__ import annotations

import math


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
