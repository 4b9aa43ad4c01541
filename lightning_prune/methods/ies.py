"""IES (Yuan et al., ICLR 2025): skip a sample while its loss changes at a steady pace, and look at it now and then."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of
from lightning_prune.core.checks import check_int, check_number
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.table import SampleTable
from lightning_prune.trainer.callback import PruningCallback

_COLUMN = "ies_losses"


def instance_early_stopping(history: Tensor, threshold: float, moving_average: int = 3) -> Tensor:
    """Return which samples are mastered: the second differences of their losses are, on average, below a threshold.

    ``mean(|l_e - 2 l_(e-1) + l_(e-2)|) < threshold`` over the last ``moving_average`` epochs e. As in the published
    code, one more difference must be on record than enters the mean: ``moving_average + 3`` losses in all.

    Args:
        history: Losses ``(n, L)``, newest last. A sample with a missing (NaN) or infinite loss among the last
            ``moving_average + 3`` is not mastered.
        threshold: Bound on the mean second difference, in units of the loss, >= 0. 0: nothing is ever mastered.
        moving_average: Differences that are averaged, >= 1.

    Returns:
        True ``(n,)`` where mastered; all False if L is too short.

    Raises:
        ValueError: If ``history`` is not ``(n, L)``, or an argument is out of range.

    Example:
        >>> steady, learning = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]
        >>> instance_early_stopping(torch.tensor([steady, learning]), 0.01)
        tensor([ True, False])
    """
    if history.dim() != 2:
        raise ValueError(f"Expected `history` to have shape (n, L), but got {tuple(history.shape)}.")
    _check(threshold, moving_average)
    needed = moving_average + 3
    if history.shape[1] < needed:
        return torch.zeros(len(history), dtype=torch.bool, device=history.device)
    return _mastered(list(history[:, -needed:].unbind(1)), threshold)


def _check(threshold: float, moving_average: int) -> None:
    check_number("threshold", threshold, "a number >= 0", threshold >= 0)
    check_int("moving_average", moving_average, low=1)


def _mastered(losses: list[Tensor], threshold: float) -> Tensor:
    """Return where the mean second difference is below the threshold; ``losses``: an ``(n,)`` an epoch, newest last."""
    total = losses[0] - losses[0]  # 0, or NaN if the oldest, which enters no difference, is missing
    for before, middle, after in zip(losses[1:], losses[2:], losses[3:], strict=False):
        total += (after - middle).sub_(middle - before).abs_()
    return total < threshold * (len(losses) - 3)


@final
class IES(PruningCallback):
    """Skip the samples that are mastered: whose loss has stopped changing, or changes at a steady pace.

    There is no target ratio: how many are skipped depends on the run (`prune/kept_fraction` shows it), and none before
    the seventh epoch. Skipped samples are refreshed at each epoch's end by a forward pass in eval mode, so that they
    can return: it is the backward pass that is saved. All weights are 1. The forward pass asks
    ``per_sample_loss(batch)``, if the module has it, else runs ``training_step`` up to its call of ``weighted_loss``.

    Args:
        threshold: Bound on the mean second difference of the loss, >= 0. The paper: 1e-3 for CIFAR-10, twice that for
            CIFAR-100, tuned between 1e-1 and 1e-5. 0: nothing is skipped.
        moving_average: Second differences that are averaged, >= 1.
        seed: Seed of the draws of random transforms in the forward pass. None: the global seed set by Lightning, else
            0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        As in the published code, a skipped sample's losses are those in eval mode and a trained one's those in train
        mode, which differ under dropout and BatchNorm: the change of mode shows as a second difference. If everything
        is mastered, the sample with the highest loss stays: an epoch cannot be empty.

    References:
        Yuan et al., "Instance-dependent Early Stopping", ICLR 2025, arXiv:2502.07547.

    Example:
        >>> IES()
        IES(threshold=0.001, moving_average=3)
    """

    ranks_by_scores = False
    refreshes_losses = True
    needs_arguments = ("none of its arguments is a ratio, what it saves follows from its threshold", "threshold: 0.001")

    def __init__(
        self,
        threshold: float = 1e-3,
        moving_average: int = 3,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        _check(threshold, moving_average)
        self.threshold = threshold
        self.moving_average = moving_average

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare a ring of the last losses; NaN: missing."""
        registry.add_column(_COLUMN, fill=torch.nan, slots=self.moving_average + 3)

    def prunable(self, max_epochs: int) -> float:
        """Return the share of the epochs after those that it takes to know whether a loss has stopped changing."""
        return max(0, max_epochs - max(self.warmup_epochs, self.moving_average + 3)) / max_epochs

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Leave out what is mastered."""
        ring = registry.column(_COLUMN)
        oldest_first = [ring[(epoch + i) % len(ring)] for i in range(len(ring))]
        mastered = _mastered(oldest_first, self.threshold)
        if bool(mastered.all()):
            mastered[registry.losses.argmax()] = False
        return Selection.from_mask(~mastered)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Record the epoch's losses, and those of the skipped samples from a forward pass."""
        slot = registry.column(_COLUMN)[registry.epoch % (self.moving_average + 3)]
        slot.fill_(torch.nan).scatter_(0, record.indices, record.losses)
        indices = ids_of(~registry.selected)
        if len(indices) == 0:
            return
        losses = registry.refresh_losses(indices)
        slot.scatter_(0, indices, losses)
        registry.losses.scatter_(0, indices, losses)
