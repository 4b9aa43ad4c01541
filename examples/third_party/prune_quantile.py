"""A method and a score of somebody else's: what a package beside lightning-prune looks like."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune import PruningCallback, Selection
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.scoring import Tracker
from lightning_prune.scoring.trackers.tracker import Batch


@final
class QuantilePruning(PruningCallback):
    """Leave out a random half of the samples below a quantile of the smoothed losses.

    Args:
        quantile: Share of the samples that may be left out, in [0, 1).
        smoothing: Weight of the newest loss in a sample's running mean, in (0, 1].
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        quantile: float = 0.5,
        smoothing: float = 0.5,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        if not 0 <= quantile < 1:
            raise ValueError(f"Expected `quantile` to be in [0, 1), but got {quantile!r}.")
        if not 0 < smoothing <= 1:
            raise ValueError(f"Expected `smoothing` to be in (0, 1], but got {smoothing!r}.")
        self.quantile = quantile
        self.smoothing = smoothing

    def setup_columns(self, registry: SampleTable) -> None:
        """State lives in the registry, which checkpoints it and keeps it the same on every rank."""
        registry.add_column("smoothed", fill=torch.nan)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Take the epoch's losses into the running means; a broken loss starts a mean anew."""
        mean = registry.column("smoothed")
        old, new = mean[record.indices], record.losses
        mean[record.indices] = torch.where(old.isfinite(), torch.lerp(old, new, self.smoothing), new)

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Draw who stays; a pure function of the registry, the epoch and the generator."""
        mean = registry.column("smoothed").nan_to_num(nan=torch.inf, posinf=torch.inf)  # unknown: stays
        easy = mean.argsort(stable=True)[: int(self.quantile * registry.num_samples)]
        stays = torch.rand(len(easy), generator=generator).to(easy.device) < 0.5
        kept = torch.ones(registry.num_samples, dtype=torch.bool, device=easy.device)
        kept[easy] = stays | mean[easy].isinf()
        kept[mean.argmax()] = True  # an epoch cannot be empty
        return Selection.from_mask(kept)


@final
class WorstLoss(Tracker):
    """The largest loss of a sample in the training; high: hard or mislabelled, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
    """

    needs = ("losses",)

    def __init__(self, num_samples: int | None = None) -> None:
        super().__init__(num_samples)

    def measure(self, batch: Batch) -> Tensor:
        """Return the losses."""
        return batch.losses

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Keep the larger one."""
        return {"value": torch.fmax(old["value"], values)}
