"""Batch Loss Score (Zhou et al., CVPR 2026): rank samples by the smoothed losses of the batches they were in."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.step import ABSENT, StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._wrapper import ScoreWrapper
from lightning_prune.trainer.callback import PruningCallback

_COLUMN = "batch_loss_score"


@final
class BatchLossScore(ScoreWrapper):
    """Have ``base`` rank by batch losses, for tasks whose loss cannot be split by sample.

    Each sample's score is an exponential average of the mean losses of the batches that it was trained in:
    ``s_i = smoothing * s_i + (1 - smoothing) * L``, starting with the first L. A batch's loss holds one part in B of a
    sample's own, so the signal is weak and grows with visits and with smaller batches.

    With a base that does not weigh losses (SeTa, OrderDP), a plain LightningModule without the mixin will do: the
    scalar that ``training_step`` returns is the batch's loss. A base that does (InfoBatch, RePB) needs
    ``weighted_loss``, whose unweighted mean then is the batch's loss.

    Args:
        base: A method that ranks by scores: InfoBatch, SeTa, RePB, OrderDP or your own.
        smoothing: Share of the old score that is kept, in [0, 1).
        seed: Seed of the draws. None: the base's.
        warmup_epochs: Epochs at the start that train on everything; at least the base's.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter. Needs the mixin.
        log: Log ``prune/*`` once an epoch.

    Raises:
        TypeError: If ``base`` is not a pruning method.
        ValueError: If it does not rank by scores, or ``smoothing`` is out of range.

    Note:
        The published code starts scores at 0, so that they count visits more than losses and rarely visited samples
        look easy. It also multiplies the batch's loss by the mean weight of its samples, which over-weighs the base's
        gradient; here weights are only applied sample by sample. Each DDP rank's samples get that rank's loss.

    References:
        Zhou et al., "Batch Loss Score for Dynamic Data Pruning", CVPR 2026.

    Example:
        >>> from lightning_prune import SeTa
        >>> BatchLossScore(base=SeTa())
        BatchLossScore(base=SeTa(prune_ratio=0.1, num_groups=5, window_scale=0.9, anneal_ratio=0.875), smoothing=0.9)
    """

    needs_mixin = False
    for_any_module = "BatchLossScore(base=OrderDP())"

    def __init__(
        self,
        base: PruningCallback,
        smoothing: float = 0.9,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(base, seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_ratio("smoothing", smoothing)
        self.smoothing = smoothing
        self.record_names = (_COLUMN, *base.record_names)

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the scores; NaN: never visited."""
        registry.add_column(_COLUMN, fill=torch.nan)
        super().setup_columns(registry)

    def missing_losses(self, step: StepRecord) -> Tensor | None:
        """Take the step's scalar loss for that of each of its samples."""
        if step.batch_loss is None or step.running is None:
            return None
        return step.batch_loss.float().expand(step.running.step_length)

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return the batch's mean loss for each of its samples that has one."""
        losses = step.recorded_losses.float()
        present = losses != ABSENT
        mean = (losses * present).sum() / present.sum()
        return {_COLUMN: mean.expand(len(losses)), **super().per_sample(step)}

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Let the base select by the scores."""
        return self.base.select(registry.replace_scores(registry.column(_COLUMN)), epoch, generator)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Smooth the scores of the epoch's samples; a batch whose loss is not finite changes nothing."""
        scores = registry.column(_COLUMN)
        new, old = record.extra[_COLUMN], scores.index_select(0, record.indices)
        smoothed = old.lerp(new, 1 - self.smoothing)
        smoothed = torch.where(old.isnan(), new, smoothed)
        scores.scatter_(0, record.indices, torch.where(new.isfinite(), smoothed, old))
        self.base.on_epoch_recorded(registry.replace_scores(scores), record)
