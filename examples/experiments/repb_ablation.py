"""RePB without one of its parts, which the library always keeps together."""

from __future__ import annotations

from typing import final

import torch

from lightning_prune import RePB, Selection
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._wrapper import ScoreWrapper
from lightning_prune.methods.repb import _CHANCE


@final
class RePBWithoutResampling(ScoreWrapper):
    """A sample that has left never returns.

    Args:
        prune_ratio: That of RePB.
        seed: That of RePB.
    """

    def __init__(self, prune_ratio: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__(RePB(prune_ratio, seed=seed))

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        return self.base.select(registry, epoch, generator)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        self.base.on_epoch_recorded(registry, record)
        absent = torch.ones(registry.num_samples, dtype=torch.bool)
        absent[registry.selected] = False
        registry.column(_CHANCE)[absent] = 0.0


@final
class RePBWithoutRescaling(ScoreWrapper):
    """All losses weigh 1.

    Args:
        prune_ratio: That of RePB.
        seed: That of RePB.
    """

    def __init__(self, prune_ratio: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__(RePB(prune_ratio, seed=seed))

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        return Selection(self.base.select(registry, epoch, generator).indices)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        self.base.on_epoch_recorded(registry, record)


@final
class RePBWithoutWindows(ScoreWrapper):
    """Losses do not count: of the trained samples each leaves with the same chance, as many as RePB would have leave.

    Args:
        prune_ratio: That of RePB.
        rescale: Weigh losses by attendance. False: all weigh 1, and resampling is all that is left of RePB.
        seed: That of RePB.
    """

    def __init__(self, prune_ratio: float = 0.5, rescale: bool = True, *, seed: int | None = None) -> None:
        super().__init__(RePB(prune_ratio, seed=seed))
        self.rescale = rescale

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        selection = self.base.select(registry, epoch, generator)
        return selection if self.rescale else Selection(selection.indices)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        self.base.on_epoch_recorded(registry, record)
        chance, trained = registry.column(_CHANCE), registry.selected
        chance[trained] = chance[trained].mean()
