"""UCB (Raju et al., 2021): the highest upper confidence bounds of the loss, chosen anew every few epochs."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import is_finite
from lightning_prune.core.checks import check_number, check_ratio, check_scores
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.ratio import FIRST_FULL, Ratio
from lightning_prune.core.stats import surely_finite
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._periodic import PeriodicPruning, first_where_unknown
from lightning_prune.methods.epsilon_greedy import epsilon_greedy

_MEAN = "ucb_mean"
_VAR = "ucb_var"


def ucb_update(mean: Tensor, var: Tensor, losses: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Take new losses into exponential averages of the loss and of its squared distance from the average.

    ``var = (1 - smoothing) var + smoothing (loss - mean)^2`` with the mean before the update, then
    ``mean = (1 - smoothing) mean + smoothing loss``. A first loss (NaN mean) gives ``mean = loss, var = 0``; a loss
    that is not finite changes nothing.

    Args:
        mean: Average losses ``(m,)`` so far; NaN: none yet.
        var: Average squared distances ``(m,)`` so far, in squared units of the loss.
        losses: New losses ``(m,)``.
        smoothing: Weight of a new loss, in (0, 1].

    Returns:
        The new mean and var, each ``(m,)``.

    Raises:
        TypeError: If a tensor is not of a floating-point type.
        ValueError: If the shapes are not ``(m,)``, all three alike, or ``smoothing`` is out of range.

    Note:
        The published code starts both at zero, so that a first loss l gives a variance of ``smoothing l^2``.

    Example:
        >>> ucb_update(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2)
        (tensor([1.8000]), tensor([0.2000]))
    """
    check_ratio("smoothing", smoothing, closed_low=False, closed_high=True)
    for name, values in (("mean", mean), ("var", var), ("losses", losses)):
        if check_scores(name, values).shape != losses.shape:
            raise ValueError(
                f"Expected `{name}` to have the shape of `losses`, {tuple(losses.shape)}, but got "
                f"{tuple(values.shape)}."
            )
    start, spread = mean, var
    if not surely_finite(mean):
        first = mean.isnan()
        start, spread = torch.where(first, losses, mean), var.masked_fill(first, 0)
    new_mean, new_var = torch.lerp(start, losses, smoothing), torch.lerp(spread, (losses - start).square_(), smoothing)
    if surely_finite(losses):
        return new_mean, new_var
    finite = is_finite(losses)
    return torch.where(finite, new_mean, mean), torch.where(finite, new_var, var)


@final
class UCB(PeriodicPruning):
    """Train on the samples of the highest average loss plus ``confidence`` times its variance; the others are left out.

    ``prune_ratio`` is of all samples, and every epoch has the same number. The choice is made in the first epoch that
    prunes (the first of all trains on everything) and in each whose number is a multiple of ``every_n_epochs``, and
    stays in force until the next one. Nothing is re-weighted and nothing anneals.

    Args:
        prune_ratio: Share of all samples left out of each epoch, in [0, 1), or a schedule.
        confidence: Weight of the variance against the mean, >= 0. 0: the highest average losses.
        every_n_epochs: Epochs from one choice to the next, at least 1.
        smoothing: Weight of a new loss in a sample's averages, in (0, 1]; the first loss starts them.
        seed: Seed of the draws among ties. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything (the first always does). Two or more are needed for
            the variance to tell samples apart at the first choice.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The averages are of the losses seen in training; the paper scores all samples anew by a forward pass before
        each choice. So a sample left out keeps its bound, and returns only when the bounds of those trained have fallen
        below it: some may never. :class:`EpsilonGreedy` looks at every sample now and then. Samples without a loss, or
        whose last one is not finite, come first. As in the published code the bound adds the variance, not its root.

    References:
        Raju et al., "Accelerating Deep Learning with Dynamic Data Pruning", 2021, arXiv:2111.12621.

    Example:
        >>> UCB(confidence=2.0)
        UCB(prune_ratio=0.3, confidence=2.0, every_n_epochs=10, smoothing=0.3)
    """

    set_by_ratio = FIRST_FULL

    def __init__(
        self,
        prune_ratio: Ratio = 0.3,
        confidence: float = 1.0,
        every_n_epochs: int = 10,
        smoothing: float = 0.3,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(
            prune_ratio,
            every_n_epochs,
            smoothing,
            seed=seed,
            warmup_epochs=warmup_epochs,
            scale_lr_schedule=scale_lr_schedule,
            log=log,
        )
        check_number("confidence", confidence, "a finite number >= 0", 0 <= confidence < math.inf)
        self.confidence = confidence

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the averages of the loss (NaN: none yet) and of its squared distance from it."""
        super().setup_columns(registry)
        registry.add_column(_MEAN, fill=torch.nan)
        registry.add_column(_VAR)

    def choose(self, registry: SampleTable, k: int, generator: torch.Generator) -> Selection:
        """Choose the highest bounds."""
        bounds = torch.add(registry.column(_MEAN), registry.column(_VAR), alpha=self.confidence)
        return epsilon_greedy(first_where_unknown(bounds, registry), k, 0.0, generator=generator)

    def update(self, registry: SampleTable, record: EpochRecord) -> None:
        """Move the averages of the trained samples."""
        if len(record.indices) == 0:
            return
        mean, var = registry.column(_MEAN), registry.column(_VAR)
        old_mean, old_var = mean.index_select(0, record.indices), var.index_select(0, record.indices)
        new_mean, new_var = ucb_update(old_mean, old_var, record.losses, self.smoothing)
        mean.scatter_(0, record.indices, new_mean)
        var.scatter_(0, record.indices, new_var)
