"""What methods share that keep one choice for several epochs."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_prune.core.arrays import is_finite
from lightning_prune.core.checks import check_int, check_ratio
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection, num_keep
from lightning_prune.core.ratio import Ratio, check_schedule, ratio_at
from lightning_prune.core.stats import surely_finite
from lightning_prune.core.table import SampleTable
from lightning_prune.trainer.callback import PruningCallback

_CHOSEN = "chosen"


def is_choice_epoch(epoch: int, first: int, every_n_epochs: int) -> bool:
    """Return whether ``epoch`` chooses anew: the ``first`` that prunes does, and each multiple of the period after it.

    Example:
        >>> [epoch for epoch in range(12) if is_choice_epoch(epoch, 1, 4)]
        [1, 4, 8]
    """
    return epoch == first or (epoch > first and epoch % every_n_epochs == 0)


def moving_average(average: Tensor, values: Tensor, weight: float) -> Tensor:
    """Return ``(1 - weight) * average + weight * values``; a NaN average starts with the value.

    Non-finite values leave the average as it is.

    Args:
        average: Averages ``(m,)`` so far; NaN: none yet.
        values: New values ``(m,)``.
        weight: Weight of a new value, in [0, 1].

    Example:
        >>> nan = torch.nan
        >>> moving_average(torch.tensor([2.0, nan, 3.0, nan]), torch.tensor([1.0, 1.0, nan, nan]), 0.25)
        tensor([1.7500, 1.0000, 3.0000,    nan])
    """
    start = average if surely_finite(average) else torch.where(average.isnan(), values, average)
    moved = torch.lerp(start, values, weight)
    return moved if surely_finite(values) else torch.where(is_finite(values), moved, average)


class PeriodicPruning(PruningCallback):
    """Base class of methods that keep the samples of the highest :meth:`scores_of`, and choose them every few epochs.

    The first epoch trains on everything. The choice is a function of the state at its epoch's start; it is kept in a
    column until the next one.
    """

    ranks_by_scores = False

    def __init__(
        self,
        prune_ratio: Ratio,
        every_n_epochs: int,
        smoothing: float,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        check_int("every_n_epochs", every_n_epochs, low=1)
        check_ratio("smoothing", smoothing, closed_low=False, closed_high=True)
        self.prune_ratio = prune_ratio
        self.every_n_epochs = every_n_epochs
        self.smoothing = smoothing

    @abstractmethod
    def choose(self, registry: SampleTable, k: int, generator: torch.Generator) -> Selection:
        """Return ``k`` samples, unweighted."""

    @abstractmethod
    def update(self, registry: SampleTable, record: EpochRecord) -> None:
        """Take the losses of an epoch into the statistics."""

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the choice in force."""
        registry.add_column(_CHOSEN, fill=True, dtype=torch.bool)

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Choose anew if it is time, else return the choice in force."""
        if not self._chooses(epoch):
            return Selection.from_mask(registry.column(_CHOSEN))
        ratio = ratio_at("prune_ratio", self.prune_ratio, registry.moment(epoch).progress)
        return self.choose(registry, num_keep(registry.num_samples, 1 - ratio), generator)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Update the statistics, and note a new choice."""
        self.update(registry, record)
        if self._chooses(registry.epoch):
            registry.column(_CHOSEN).copy_(registry.selected)

    def _chooses(self, epoch: int) -> bool:
        return is_choice_epoch(epoch, max(1, self.warmup_epochs), self.every_n_epochs)


def first_where_unknown(scores: Tensor, registry: SampleTable) -> Tensor:
    """Return ``scores`` ``(n,)``, infinite where the last loss is missing or not finite: such samples stay."""
    scores, losses = registry.settle(scores), registry.settle(registry.losses)
    return scores if surely_finite(losses) else torch.where(is_finite(losses), scores, torch.inf)
