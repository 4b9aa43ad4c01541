"""Did pruning hurt? Verdicts from paired seeds, which hold however often one looks and adds seeds: pure rules.

A row's runs are paired with those of full data by seed. Verdicts are given at 3, 5, 10, 20, 40, ... pairs, which share
the permitted error among them, so that it is the same error in all whether one stops at the first or goes on; with a
number in between, the last of these counts. The rows share it too (Bonferroni). At each, a Student t interval is taken
for normal differences, and a row's interval is what all its intervals have in common.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, final

ALPHA = 0.05
"""Chance, at most, that any verdict of a comparison is wrong."""
MIN_PAIRS = 3
_MOST_PAIRS = 1000
_LOWER_IS_BETTER = ("loss", "err", "perplexity", "ppl", "mae", "mse", "wer", "cer", "fid", "nll")

Outcome = Literal["no worse", "worse", "cannot tell"]


def looks() -> Iterator[tuple[int, float]]:
    """Yield the numbers of pairs at which verdicts are given, and the share of the error that each may spend.

    Example:
        >>> import itertools
        >>> list(itertools.islice(looks(), 5))
        [(3, 0.25), (5, 0.25), (10, 0.25), (20, 0.125), (40, 0.0625)]
    """
    yield 3, 0.25
    yield 5, 0.25
    pairs, share = 10, 0.25
    while True:
        yield pairs, share
        pairs, share = 2 * pairs, share / 2


def looks_until(num_pairs: int) -> list[tuple[int, float]]:
    """Return the looks of which ``num_pairs`` pairs have the data.

    Example:
        >>> [pairs for pairs, _ in looks_until(12)]
        [3, 5, 10]
    """
    found: list[tuple[int, float]] = []
    for pairs, share in looks():
        if pairs > num_pairs:
            return found
        found.append((pairs, share))
    raise AssertionError  # there is always another look


def next_look(num_pairs: int) -> int:
    """Return the next number of pairs at which a verdict is given.

    Example:
        >>> next_look(3), next_look(11)
        (5, 20)
    """
    return next(pairs for pairs, _ in looks() if pairs > num_pairs)


@lru_cache(maxsize=4096)
def _quantile(level: float, degrees: int) -> float:
    """Return the upper quantile of Student's t distribution that is exceeded, on either side, with chance ``level``."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - level / 2))


def check_installed() -> None:
    """Say what to install where the quantiles of Student's t distribution are missing.

    Raises:
        ModuleNotFoundError: If SciPy is not installed.
    """
    try:
        import scipy.special  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected SciPy for the verdicts, but it is not installed. Run `pip install 'lightning-prune[compare]'`."
        ) from error


@final
@dataclass(frozen=True)
class Verdict:
    """What paired seeds say of a row. Differences are signed so that positive is better, whatever the metric.

    Attributes:
        outcome: ``"no worse"``: not worse by more than the margin. ``"worse"``: worse than full data. Else
            ``"cannot tell"``.
        num_pairs: Pairs of runs that the interval is of: the last look's.
        difference: Mean difference of these. NaN: there is no pair.
        low: Lower end of the 95 % interval, which holds for all rows and looks at once.
        high: Its upper end.
        margin: Loss that would not matter.
        more_seeds: About how many further seeds would decide. None: it is decided, or would take too many.
    """

    outcome: Outcome
    num_pairs: int
    difference: float
    low: float
    high: float
    margin: float
    more_seeds: int | None = None

    @property
    def is_decided(self) -> bool:
        """Whether more seeds are not needed."""
        return self.outcome != "cannot tell"


def judge(
    differences: Sequence[float],
    margin: float,
    num_rows: int = 1,
    *,
    alpha: float = ALPHA,
    resolution: float | None = None,
) -> Verdict:
    """Return the verdict on a row; with a difference that is not finite there is none.

    Args:
        differences: Metric of the row's run minus that of full data, in the order of the seeds; positive is better.
        margin: Loss that would not matter, in units of the metric; at least 0.
        num_rows: Rows that are judged at once.
        alpha: Chance, at most, that any of them is judged wrongly.
        resolution: Standard deviation below which differences count as equal. None: 1e-4 of the margin.

    Example:
        >>> judge([0.1, -0.1, 0.0, 0.1, 0.0], margin=1.0).outcome
        'no worse'
        >>> judge([0.1, -0.1], margin=1.0)
        Verdict(outcome='cannot tell', num_pairs=2, difference=0.0, low=-inf, high=inf, margin=1.0, more_seeds=1)
    """
    resolution = 1e-4 * margin if resolution is None else resolution
    seen = looks_until(len(differences))
    if not all(map(math.isfinite, differences)):
        return Verdict("cannot tell", len(differences), math.nan, -math.inf, math.inf, margin)
    if not seen:
        mean = statistics.fmean(differences) if differences else math.nan
        more = MIN_PAIRS - len(differences)
        return Verdict("cannot tell", len(differences), mean, -math.inf, math.inf, margin, more)
    intervals = [interval(differences[:pairs], alpha * share / num_rows, resolution) for pairs, share in seen]
    low, high = max(low for low, _ in intervals), min(high for _, high in intervals)
    if low > high:  # with a chance below alpha: the looks contradict each other
        low, high = intervals[-1]
    used = differences[: seen[-1][0]]
    mean = statistics.fmean(used)
    outcome: Outcome = "no worse" if low > -margin else "worse" if high < 0 else "cannot tell"
    more_seeds = None
    if outcome == "cannot tell":
        more_seeds = _more_seeds(len(differences), mean, _deviation(used, resolution), margin, alpha / num_rows)
    return Verdict(outcome, len(used), mean, low, high, margin, more_seeds)


def interval(differences: Sequence[float], level: float, resolution: float = 0.0) -> tuple[float, float]:
    """Return the t interval that misses the mean with chance ``level``.

    It has no ends where all differences are equal, but for rounding: such a metric is too coarse to say how much they
    vary.

    Args:
        differences: At least two.
        level: In (0, 1).
        resolution: Standard deviation below which they count as equal.

    Example:
        >>> low, high = interval([1.0, 2.0, 3.0], 0.05)
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    mean, half = (
        statistics.fmean(differences),
        _half_width(len(differences), _deviation(differences, resolution), level),
    )
    return mean - half, mean + half


def _deviation(differences: Sequence[float], resolution: float) -> float:
    """Return the standard deviation, or 0 where the values count as equal."""
    mean = statistics.fmean(differences)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (len(differences) - 1))
    return 0.0 if deviation <= resolution else deviation


def _half_width(num_pairs: int, deviation: float, level: float) -> float:
    if deviation == 0:
        return math.inf
    return _quantile(level, num_pairs - 1) * deviation / math.sqrt(num_pairs)


def _more_seeds(num_pairs: int, mean: float, deviation: float, margin: float, alpha: float) -> int | None:
    """Return how many seeds are missing until the look at which such differences would be decided."""
    needed = max(mean + margin, -mean)
    for pairs, share in looks():
        if pairs > num_pairs and (deviation == 0 or _half_width(pairs, deviation, alpha * share) < needed):
            return pairs - num_pairs
        if pairs > _MOST_PAIRS:
            return None
    raise AssertionError  # there is always another look


def lower_is_better(metric: str) -> bool:
    """Return whether a metric's name says that it is a loss.

    Example:
        >>> lower_is_better("val_loss"), lower_is_better("val_accuracy")
        (True, False)
    """
    parts = metric.lower().replace("/", "_").split("_")
    return any(part.startswith(_LOWER_IS_BETTER[:2]) or part in _LOWER_IS_BETTER for part in parts)


def default_margin(metric: str, full: Sequence[float]) -> float:
    """Return half a point of an accuracy, and 1 % of any other metric.

    Args:
        metric: Its name; with "acc" in it, it is an accuracy, of 1 or, if any value is above 1, of 100.
        full: Its values with full data.

    Example:
        >>> default_margin("val_acc", [0.91]), default_margin("val_acc", [91.0]), default_margin("val_loss", [2.0])
        (0.005, 0.5, 0.02)
    """
    if "acc" in metric.lower():
        return 0.5 if max(full, default=0.0) > 1 else 0.005
    return 0.01 * abs(statistics.fmean(full)) if full else math.nan
