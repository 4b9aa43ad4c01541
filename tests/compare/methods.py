"""Pruning methods that fail, for runs of `compare`."""

from __future__ import annotations

import os
import signal

from lightning_prune import PruningCallback, Selection


class Crashing(PruningCallback):
    """Raises, or is killed, in its second epoch.

    Args:
        how: ``"raise"`` or ``"kill"``.
    """

    def __init__(self, how: str = "raise") -> None:
        super().__init__()
        self.how = how

    def select(self, registry, epoch, generator):
        if epoch == 1 and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == 1:
            raise RuntimeError("no more samples for you")
        return Selection.all(registry.num_samples)
