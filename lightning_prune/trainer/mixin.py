"""The one method that a user's module calls: `weighted_loss`, which applies the epoch's weights and records losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_prune.core.step import StepRecord, weighted_loss

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    _Base = LightningModule
else:
    _Base = object


class WeightedLossMixin(_Base):
    """Gives a LightningModule `weighted_loss`; put it before ``LightningModule`` in the bases.

    Without a pruning callback, and outside training, `weighted_loss` is a plain mean, so the module can be used as
    before.

    Example:
        >>> import torch
        >>> import lightning.pytorch as L
        >>> class Model(WeightedLossMixin, L.LightningModule):
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         return self.weighted_loss((x - y) ** 2)
        >>> Model().training_step((torch.tensor([1.0, 2.0]), torch.zeros(2)), 0)
        tensor(2.5000)
    """

    _pruning_step: StepRecord | None = None

    def weighted_loss(
        self,
        losses: Tensor,
        *,
        mask: Tensor | None = None,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        features: Tensor | None = None,
        indices: Tensor | None = None,
        record: bool = True,
    ) -> Tensor:
        """Return the weighted mean of per-sample losses, and record them for the pruning callback.

        Args:
            losses: Unreduced losses ``(B,)`` or ``(B, ...)``; trailing dimensions are averaged per sample.
            mask: Of the shape of ``losses``: True where an element counts. A sample with nothing unmasked counts 0
                in the loss and is not recorded.
            logits: ``(B, C)``, for scores that need them.
            targets: ``(B,)`` class ids, for scores that need them.
            features: ``(B, D)``, for scores that need them.
            indices: Sample ids ``(B,)``, int64, for loaders whose batches are not what the sampler drew (a collate
                function that drops samples, a loader that reorders). None: the ids that the sampler drew.
            record: Record these losses. When a step calls this several times, the first recording call counts.

        Returns:
            Scalar ``(w * l).sum() / B`` in the dtype of ``losses``; exactly ``losses.mean()`` where nothing is
            weighted; 0 for an empty batch.

        Raises:
            TypeError: If ``losses`` is not a floating-point tensor.
            ValueError: If it is a scalar, or its length is not that of the batch.
        """
        return weighted_loss(
            self._pruning_step,
            losses,
            mask=mask,
            logits=logits,
            targets=targets,
            features=features,
            indices=indices,
            record=record,
        )

    def pruned_scheduler_calls(self, scheduler: Any) -> int:
        """Return how often to step a learning-rate scheduler now, so that it ends on time in shortened epochs.

        Only modules that override ``lr_scheduler_step`` themselves need this: step ``scheduler`` that many times.
        """
        step = self._pruning_step
        return 1 if step is None or step.scheduler_calls is None else step.scheduler_calls(scheduler)

    if not TYPE_CHECKING:

        def log(self, *args: Any, **kwargs: Any) -> None:
            """Log as Lightning does, but nothing while a step is run only to learn its losses."""
            if self._pruning_step is None or not self._pruning_step.probing:
                super().log(*args, **kwargs)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a step-interval schedule in proportion to the full epoch; others as Lightning does."""
        for _ in range(self.pruned_scheduler_calls(scheduler)):
            super().lr_scheduler_step(scheduler, metric)
