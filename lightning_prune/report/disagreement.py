"""Several runs side by side: which samples do they disagree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_prune.report.numbers import ranked, short
from lightning_prune.report.record import RunRecord

_BINS = 20
_Array = np.ndarray[Any, np.dtype[Any]]


def compare_runs(records: Sequence[RunRecord], names: list[str], shown: int) -> dict[str, Any]:
    """Return how far runs trained the same samples.

    Args:
        records: At least two runs on the same dataset.
        names: Their names.
        shown: How many of the samples to name that the runs disagree on most.
    """
    shares = np.stack([_share(record) for record in records])
    differences = shares.max(0) - shares.min(0)
    pairs = [(i, j) for i in range(len(records)) for j in range(i)]
    means = [record.columns["mean"] for record in records]
    return {
        "names": names,
        "shared_usage": _table(len(records), {pair: _rank_correlation(*shares[list(pair)]) for pair in pairs}),
        "shared_losses": _table(len(records), {(i, j): _rank_correlation(means[i], means[j]) for i, j in pairs}),
        "ids": (ids := ranked(np.where(differences > 0, differences, np.nan), shown)).tolist(),
        "shares": [short(row[ids]) for row in shares],
        "differences": np.histogram(differences, bins=_BINS, range=(0, 1))[0].tolist(),
        "same_labels": _same_labels(records),
    }


def _share(record: RunRecord) -> _Array:
    """Return the share ``(n,)`` of the run's epochs in which each sample was trained."""
    share: _Array = record.columns["times"] / len(record.meta["epochs"])
    return share


def _table(size: int, values: dict[tuple[int, int], float | None]) -> list[list[float | None]]:
    return [
        [1.0 if i == j else values[max(i, j), min(i, j)] for j in range(size)]
        for i in range(size)
    ]  # fmt: skip


def _rank_correlation(first: _Array, second: _Array) -> float | None:
    """Return Spearman's correlation over the samples that both know; None where one of the two is constant."""
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2:
        return None
    ranks = [_mean_ranks(values[both]) for values in (first, second)]
    if any(rank.std() == 0 for rank in ranks):
        return None
    value: float | None = short(float(np.corrcoef(ranks[0], ranks[1])[0, 1]))
    return value


def _mean_ranks(values: _Array) -> _Array:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return np.asarray((ends - (counts - 1) / 2)[which])


def _same_labels(records: Sequence[RunRecord]) -> bool | None:
    """Return whether the runs give samples the same labels; None: not all of them know any."""
    given = [record.columns.get("given") for record in records]
    known = [labels for labels in given if labels is not None]
    return all(np.array_equal(known[0], labels) for labels in known) if len(known) == len(given) else None
