"""Dynamic random pruning: a fresh uniform subset every epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch

from lightning_prune.core.checks import check_int
from lightning_prune.core.part import Part
from lightning_prune.core.plan import Selection, num_keep, random_submask
from lightning_prune.core.ratio import Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.rng import resolve_generator
from lightning_prune.core.table import SampleTable
from lightning_prune.trainer.callback import PruningCallback


def random_subset(
    num_samples: int, k: int, *, generator: torch.Generator | None = None, part: Part | None = None
) -> Selection:
    """Draw ``k`` of ``num_samples`` ids uniformly without replacement, ascending; of a part, by position in it.

    Example:
        >>> len(random_subset(10, 3, generator=torch.Generator().manual_seed(0)))
        3
    """
    check_int("k", k, low=1, high=num_samples)
    part = Part.whole(num_samples) if part is None else part
    everyone = torch.ones(len(part), dtype=torch.bool)
    return Selection.from_mask(random_submask(everyone, k, resolve_generator(generator), part))


@final
class RandomPruning(PruningCallback):
    """Train each epoch on a fresh uniform subset; ``prune_ratio`` is the share of all samples left out.

    The baseline called "Random*" in the papers, and a hard one to beat. With ``rescale=True`` every kept loss is
    weighted by ``n / k``, which keeps the expected gradient sum of an epoch equal to that of the full data. Without it,
    no losses are needed: a module that cannot be edited, without `WeightedLossMixin`, will do.

    Args:
        prune_ratio: Share of all samples left out of each epoch, in [0, 1), or a schedule.
        rescale: Weight kept samples by ``n / k`` instead of 1.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> RandomPruning(prune_ratio=0.3)
        RandomPruning(prune_ratio=0.3, rescale=False)
    """

    needs_mixin = False
    shares_state = True
    for_any_module = "RandomPruning()"
    set_by_ratio = RatioSetting()

    def __init__(
        self,
        prune_ratio: Ratio = 0.3,
        rescale: bool = False,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        self.prune_ratio = prune_ratio
        self.rescale = rescale
        self.ranks_by_scores = False
        self.weighs_losses = rescale

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Draw this epoch's subset."""
        n = registry.num_samples
        ratio = ratio_at("prune_ratio", self.prune_ratio, registry.moment(epoch).progress)
        k = num_keep(n, 1 - ratio)
        selection = random_subset(n, k, generator=generator, part=registry.part)
        if self.rescale:
            return replace(selection, weights=torch.full((len(selection),), n / k, dtype=torch.float32))
        return selection
