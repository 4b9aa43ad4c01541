"""How many sample-steps an epoch trains, by the number of samples that are selected, as far as a loader tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_prune.core.sampler import EvenCuts


@final
@dataclass(frozen=True)
class EpochShape:
    """The loader of a run, as numbers.

    Args:
        num_samples: Length of the dataset.
        drawn: Samples that an epoch of all draws, over all ranks: another number than ``num_samples`` where a user's
            sampler draws them. How many are left of them, of a selection, is then an estimate.
        batch_size: Samples in a batch of a rank.
        world_size: Number of ranks.
        drop_last: Whether a last batch that is shorter is left out.
        limit: Batches of an epoch, or the share of them, that is trained.
        accumulate: Batches of an optimizer step.
        drops: Whether samples that are not selected are left out. False: of a stream whose dataset does not drop them,
            they are trained with weight 0.
    """

    num_samples: int
    drawn: int
    batch_size: int
    world_size: int = 1
    drop_last: bool = False
    limit: int | float = 1.0
    accumulate: int = 1
    drops: bool = True

    def batches(self, selected: int) -> int:
        """Return the batches of each rank in an epoch of so many selected samples."""
        num = len(self._cuts(selected))
        return min(num, self.limit) if isinstance(self.limit, int) else int(num * self.limit)

    def trained(self, selected: int) -> int:
        """Return the sample-steps of an epoch of so many selected samples, over all ranks.

        Example:
            >>> shape = EpochShape(100, 100, batch_size=8, drop_last=True)
            >>> shape.trained(100), shape.trained(50)
            (96, 48)
        """
        drawn = round(selected * self.drawn / self.num_samples)
        return min(drawn, self._cuts(selected).start(self.batches(selected)) * self.world_size)

    def steps(self, trained: float) -> int:
        """Return the optimizer steps that so many sample-steps of an epoch take."""
        return max(1, math.ceil(trained / self.step_size - 1e-9))

    @property
    def step_size(self) -> int:
        """Sample-steps of an optimizer step, over all ranks."""
        return self.batch_size * self.world_size * self.accumulate

    @property
    def full(self) -> int:
        """Sample-steps of an epoch of all samples."""
        return self.trained(self.num_samples)

    def selected_for(self, trained: float) -> int:
        """Return how many samples to select so that about so many sample-steps are trained.

        Example:
            >>> EpochShape(100, 100, batch_size=8, drop_last=True).selected_for(50)
            48
        """
        low, high = 1, self.num_samples
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.trained(middle) >= trained else (middle + 1, high)
        fewer = self._least_for(self.trained(low - 1)) if low > 1 else low
        return min(low, fewer, key=lambda selected: abs(self.trained(selected) - trained))

    def _least_for(self, trained: int) -> int:
        """Return the fewest samples that are trained so often."""
        low, high = 1, self.num_samples
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.trained(middle) >= trained else (middle + 1, high)
        return low

    def _cuts(self, selected: int) -> EvenCuts:
        ranks = self.world_size
        drawn = round(selected * self.drawn / self.num_samples)
        return EvenCuts(
            math.ceil(drawn / ranks), self.batch_size, full=math.ceil(self.drawn / ranks), drop_last=self.drop_last
        )
