"""RePB without one of its parts, which the library always keeps together."""

from __future__ import annotations

import torch

from lightning_prune import RePB, ScoreRegistry, Selection
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.methods.repb import _CHANCE


class RePBWithoutResampling(RePB):
    """A sample that has left never returns."""

    def on_epoch_recorded(self, registry: ScoreRegistry, record: EpochRecord) -> None:
        super().on_epoch_recorded(registry, record)
        absent = torch.ones(registry.num_samples, dtype=torch.bool)
        absent[registry.selection.indices] = False
        registry.column(_CHANCE)[absent] = 0.0


class RePBWithoutRescaling(RePB):
    """All losses weigh 1."""

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        return Selection(super().select(registry, epoch, generator).indices)
