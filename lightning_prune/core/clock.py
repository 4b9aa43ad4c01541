"""The one place that tells the time, so that a test can."""

from __future__ import annotations

import time


def now() -> float:
    """Return the seconds since some moment; only differences mean something."""
    return time.monotonic()
