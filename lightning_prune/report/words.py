"""Numbers in words, the same in each rendering."""

from __future__ import annotations

from lightning_prune.trainer.ending import in_time


def percent(share: float | None) -> str:
    """Return a share in percent.

    Example:
        >>> percent(0.2512)
        '25.1 %'
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """Return a number with four significant digits.

    Example:
        >>> number(0.98765432)
        '0.9877'
    """
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it."""
    return "-" if seconds is None else in_time(seconds)
