"""Selective-Backprop (Jiang et al., 2019): of each batch, train on samples drawn in favour of high losses."""

from __future__ import annotations

from typing import final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_prune.core.checks import check_int, check_ratio
from lightning_prune.core.moment import Moment
from lightning_prune.core.ratio import Arguments, Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._shared import num_picks, random_order, ratio_of_step, weighted_draw
from lightning_prune.trainer.callback import PruningCallback


def selective_backprop_probs(num_samples: int, keep_ratio: float) -> Tensor:
    """Return the chance ``(num_samples,)``, float64, of the first draw by loss rank, lowest loss first; they sum to 1.

    Proportional to ``((r + 0.5) / N) ** (1 / keep_ratio - 1)`` for rank r: independent coins with these chances would
    keep a share ``keep_ratio`` of many samples.

    Args:
        num_samples: Samples in the batch, N.
        keep_ratio: Share to keep, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> selective_backprop_probs(4, 0.5).tolist()
        [0.0625, 0.1875, 0.3125, 0.4375]
    """
    check_int("num_samples", num_samples, low=1)
    check_ratio("keep_ratio", keep_ratio, closed_low=False, closed_high=True)
    ranks = (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples
    weights = ranks ** (1 / keep_ratio - 1)
    return weights / weights.sum()


def _active(moment: Moment, given: Arguments) -> float:
    """Return the share of an epoch's batches that are not trained in full."""
    interrupt = given["interrupt"]
    return (1 - 1 / interrupt if interrupt else 1.0) if given["start"] <= moment.progress < given["end"] else 0.0


@final
class SelectiveBackprop(PruningCallback):
    """Train on a part of each batch, drawn in favour of high losses; ``prune_ratio`` is the share of it left out.

    Before the step, the batch's losses are found by a forward pass in eval mode, about a third of a step's work: it
    pays off when clearly more than that is left out. Active in a middle part of the run. Biased to high losses by
    design: nothing is re-weighted.

    The losses come from ``per_sample_loss(batch)``, if the module has it, else from its ``training_step``, run up to
    its call of ``weighted_loss``.

    Args:
        prune_ratio: Share of a batch left out, in [0, 1), or a schedule. At least one sample stays.
        start: Share of the run, in [0, 1], after which it is active. A run limited by ``max_epochs`` is measured in
            epochs, one limited by ``max_steps`` in steps.
        end: Share of the run, in [0, 1], from which on batches are full again.
        interrupt: Every how many batches of an epoch one stays full; 0: none does, 1: all do.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter. Here they are not.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        This is the variant of the Composer library, where a batch always keeps the same number of samples, so that all
        ranks work alike. There the forward pass runs in train mode and counts twice in BatchNorm statistics; here it
        does not.

    References:
        Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019, arXiv:1910.00762.

    Example:
        >>> SelectiveBackprop(prune_ratio=0.5)
        SelectiveBackprop(prune_ratio=0.5, start=0.5, end=0.9, interrupt=2)
    """

    needs_mixin = False
    ranks_by_scores = False
    picks_in_batch = True
    set_by_ratio = RatioSetting(
        most=0.9,
        active=_active,
        bound="It is active from `start` to `end` of the run, and not on every `interrupt`-th batch. It reaches "
        "further with `start=0.0`, `end=1.0` and `interrupt=0`.",
    )

    def __init__(
        self,
        prune_ratio: Ratio = 0.5,
        start: float = 0.5,
        end: float = 0.9,
        interrupt: int = 2,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        check_ratio("start", start, closed_high=True)
        check_ratio("end", end, closed_high=True)
        if start > end:
            raise ValueError(f"Expected `start` <= `end`, but got {start} and {end}.")
        check_int("interrupt", interrupt, low=0)
        self.prune_ratio = prune_ratio
        self.start = start
        self.end = end
        self.interrupt = interrupt

    def setup_columns(self, registry: SampleTable) -> None:
        """Refuse a run without an end, of which there is no middle part."""
        if registry.max_epochs is None and registry.max_steps is None:
            raise MisconfigurationException(
                "Expected a run of known length, since SelectiveBackprop is active from a share `start` to a share "
                "`end` of it, but neither `max_epochs` nor `max_steps` is set. Set one of them."
            )

    def picks_now(self, registry: SampleTable, epoch: int, batch_idx: int) -> bool:
        """Return whether the run is in its middle part and this batch is not one of the full ones."""
        full = self.interrupt > 0 and (batch_idx + 1) % self.interrupt == 0
        if full or not self.start <= registry.progress < self.end:
            return False
        return ratio_at("prune_ratio", self.prune_ratio, registry.progress) > 0

    def pick(self, step: StepRecord, generator: torch.Generator) -> Tensor:
        """Draw samples without replacement, by the ranks of their losses."""
        losses = step.recorded_losses
        size = len(losses)
        keep_ratio = 1 - ratio_of_step(step, self.prune_ratio)
        drawn = weighted_draw(
            selective_backprop_probs(size, keep_ratio).log_(), num_picks(step, size, keep_ratio), generator=generator
        )
        return random_order(losses, generator).index_select(0, drawn.to(losses.device, non_blocking=True)).sort().values
