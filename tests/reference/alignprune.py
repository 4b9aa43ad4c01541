"""Alignment scores as the formulas say, one sample after another."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def score(x, y, seen, correlation: str, min_observed: int) -> float:
    x, y, seen = np.asarray(x, float), np.asarray(y, float), np.asarray(seen, bool) & np.isfinite(x) & np.isfinite(y)
    if seen.sum() < min_observed:
        return np.nan
    x, y = x[seen], y[seen]
    if correlation == "cosine":
        scale = np.sqrt((x @ x) * (y @ y))
        return x @ y / scale if scale else 0.0
    if correlation == "dtw":
        return -dtw(standardised(x), standardised(y))
    if correlation == "spearman":
        x, y = rankdata(x), rankdata(y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def standardised(x):
    return (x - x.mean()) / x.std() if np.ptp(x) else np.zeros_like(x)


def dtw(x, y) -> float:
    cost = np.full((len(x) + 1, len(y) + 1), np.inf)
    cost[0, 0] = 0
    for i in range(len(x)):
        for j in range(len(y)):
            best = min(cost[i, j], cost[i, j + 1], cost[i + 1, j])
            cost[i + 1, j + 1] = abs(x[i] - y[j]) + best
    return float(cost[-1, -1])
