"""Argument checks that share one sentence: expected ..., but got ...."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor


@final
class StateMismatchError(ValueError):
    """Raised where a run is not the one that its saved state belongs to; the message says in what they differ."""


@final
class LoaderError(ValueError):
    """Raised where a loader's samples cannot be told apart; the message says what the loader would have to do."""


def warn_on_first_rank(message: str, rank: int) -> None:
    """Warn in the process of rank 0 only: the others would say the same."""
    if rank == 0:
        warnings.warn(message, UserWarning, stacklevel=4)


def check_number(name: str, value: object, expected: str, ok: bool) -> None:
    """Raise unless ``value`` is a real number (no bool) for which ``ok`` holds.

    Args:
        name: Name of the argument, as the user wrote it.
        value: What was given.
        expected: The allowed values in words, for example ``"a float in [0, 1)"``.
        ok: Whether the value is in range; only looked at when ``value`` is a number.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is out of range or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Expected `{name}` to be {expected}, but got {value!r}.")
    if not ok:
        raise ValueError(f"Expected `{name}` to be {expected}, but got {value!r}.")


def check_ratio(
    name: str, value: object, *, low: float = 0.0, high: float = 1.0, closed_low: bool = True, closed_high: bool = False
) -> None:
    """Raise unless ``value`` is a number between ``low`` and ``high``; ``closed_*`` says which ends belong to it."""
    expected = f"a number in {'[' if closed_low else '('}{low:g}, {high:g}{']' if closed_high else ')'}"
    number = float(value) if isinstance(value, (int, float)) else low
    ok = (low <= number if closed_low else low < number) and (number <= high if closed_high else number < high)
    check_number(name, value, expected, ok)


def check_int(name: str, value: object, *, low: int | None = None, high: int | None = None) -> None:
    """Raise unless ``value`` is an int (no bool) with ``low <= value <= high``."""
    expected = "an int" + (f" >= {low}" if low is not None else "") + (f" and <= {high}" if high is not None else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected `{name}` to be {expected}, but got {value!r}.")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"Expected `{name}` to be {expected}, but got {value}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {list(choices)}, but got {value!r}.")


def check_scores(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a one-dimensional, non-empty, floating tensor of scores.

    Raises:
        TypeError: If it is not a tensor of floating dtype.
        ValueError: If it is not one-dimensional or is empty.
    """
    if not isinstance(value, Tensor) or not torch.is_floating_point(value):
        got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Expected `{name}` to be a floating-point tensor, but got {got}.")
    if value.dim() != 1 or value.numel() == 0:
        raise ValueError(f"Expected `{name}` to have shape (n,) with n >= 1, but got {tuple(value.shape)}.")
    return value
