"""The time that training takes, without validation: what a saving is worth."""

from __future__ import annotations

import time
from typing import final


@final
class Stopwatch:
    """Measures the seconds of each epoch's training.

    Attributes:
        total: Seconds of the epochs that have ended.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._epoch = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the running epoch so far."""
        return self._epoch + (0.0 if self._since is None else time.perf_counter() - self._since)

    def run(self) -> None:
        """Start, or go on after a pause; a second time, nothing changes."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop until :meth:`run`."""
        self._epoch, self._since = self.seconds, None

    def lap(self) -> None:
        """End the epoch."""
        self.total += self.seconds
        self._epoch, self._since = 0.0, None
