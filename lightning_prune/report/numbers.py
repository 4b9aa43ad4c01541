"""Numbers as a report shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

_DIGITS = 4
_MOST_POWER = 22  # of ten, that a float64 holds exactly


def short(values: Any) -> Any:
    """Return numbers with four significant digits; what is not finite becomes None.

    Args:
        values: An array ``(n,)``, or one value; an int stays.

    Returns:
        A list, or one value.

    Example:
        >>> short(np.array([0.123456, np.nan, 123456.0]))
        [0.1235, None, 123500.0]
        >>> short(7)
        7
    """
    if isinstance(values, np.ndarray):
        wide = values.astype(np.float64)
        finite = np.isfinite(wide)
        safe = np.where(finite & (wide != 0), wide, 1.0)
        power = np.clip(_DIGITS - 1 - np.floor(np.log10(np.abs(safe))), -_MOST_POWER, _MOST_POWER)
        up, down = 10.0 ** np.maximum(power, 0), 10.0 ** np.maximum(-power, 0)
        rounded = np.where(finite, wide, 0.0)
        rounded = np.round(rounded * up / down) * down / up
        return [value if ok else None for value, ok in zip(rounded.tolist(), finite.tolist(), strict=True)]
    if isinstance(values, float):
        return short(np.array([values]))[0]
    return values


def ranked(values: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """Return the ids ``(<= k,)`` of the highest finite values ``(n,)``, highest first; of equal ones the lower id.

    Example:
        >>> ranked(np.array([1.0, np.nan, 3.0, 3.0]), 3)
        array([2, 3, 0])
    """
    ids = np.flatnonzero(np.isfinite(values))
    if len(ids) > 4 * k:
        bound = np.partition(values[ids], len(ids) - k)[len(ids) - k]
        ids = ids[values[ids] >= bound]
    return ids[np.argsort(-values[ids], kind="stable")][:k]
