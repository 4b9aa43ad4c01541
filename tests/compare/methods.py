"""Pruning methods of somebody else, for runs of `compare`: some fail, some say how a ratio sets them, some do not."""

from __future__ import annotations

import os
import signal

import torch

from lightning_prune import PruningCallback, Selection
from lightning_prune.core.ratio import RatioSetting


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


class Halved(PruningCallback):
    """Leaves out half of what it is told, and does not say so."""

    def __init__(self, prune_ratio: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.prune_ratio = prune_ratio

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(round(registry.num_samples * (1 - self.prune_ratio / 2))))


class Keeping(PruningCallback):
    """Keeps a share, and says that this is how a ratio sets it."""

    set_by_ratio = RatioSetting(lambda drop: {"keep": 1 - drop}, most=0.6, bound="It keeps 40 %.")

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(round(registry.num_samples * self.keep)))


class Sharp(PruningCallback):
    """Has an argument without a default, which is no ratio."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
