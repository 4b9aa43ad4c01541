"""The one method that a user's module calls: `weighted_loss`, which applies the epoch's weights and records losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_prune.core.losses import Losses, Normalize
from lightning_prune.core.step import StepRecord, Steps, step_of, weighted_loss

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

    _pruning_step: StepRecord | Steps | None = None

    def weighted_loss(
        self,
        losses: Losses,
        *,
        mask: Tensor | None = None,
        normalize: Normalize = "sample",
        sample_weight: Tensor | None = None,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        features: Tensor | None = None,
        grad_norm: Tensor | None = None,
        indices: Tensor | None = None,
        record: bool = True,
        loader: str | int | None = None,
    ) -> Tensor:
        """Return the weighted mean of per-sample losses, and record them for the pruning callback.

        Where nothing is pruned it is the mean that the module had: with l the losses per sample, w ``sample_weight``,
        c unmasked elements a sample, and p the pruning weights, whose mean over an epoch makes up for what it leaves
        out,

        ========================================= =========================== =========================================
        arguments                                 nothing pruned (p = 1)      pruned
        ========================================= =========================== =========================================
        ``losses``                                ``losses.mean()``, exactly  ``(p * l).sum() / B``
        ``mask=``                                 ``l.mean()``                ``(p * l).sum() / B``
        ``mask=, normalize="token"``              ``(c * l).sum() / c.sum()`` ``(p * c * l).sum() / c.sum()``
        ``sample_weight=``                        ``(w * l).sum() / w.sum()`` ``(p * w * l).sum() / (B * W)``
        ========================================= =========================== =========================================

        with ``W = (p * w).sum() / p.sum()``, the mean of w over the data that the batch stands for. ``w.sum() / B``
        would be its mean over what pruning left: as that has more of the hard classes, whose weight is larger, steps
        would shrink, and no longer add up to those of the full epoch. With ``normalize="token"`` too, B and the sums
        count tokens. What is recorded is l: weights never change a score.

        Args:
            losses: Unreduced losses ``(B,)`` or ``(B, ...)``; trailing dimensions are averaged per sample. They must be
                unweighted: give class weights as ``sample_weight``. Or several such by name, as detection models have
                them, which are summed per sample.
            mask: Of the shape of ``losses``: True where an element counts. A sample with nothing unmasked counts 0
                in the loss and is not recorded.
            normalize: With a mask, ``"sample"``: the mean of the samples' means. ``"token"``: the mean over all
                unmasked elements of the batch, as of ``F.cross_entropy(..., ignore_index=...)``.
            sample_weight: Weights ``(B,)`` of the objective, of class or importance, normalised as torch does.
            logits: ``(B, C)``, for scores that need them.
            targets: ``(B,)`` class ids, or ``(B, C)`` probabilities (mixed or smoothed labels), for scores that need
                them.
            features: ``(B, D)``, for scores that need them.
            grad_norm: Norms ``(B,)`` of the gradients of ``losses``, each sample's own and unweighted, by the logits,
                for scores that go by them, where the loss is not the cross-entropy of ``logits`` and ``targets``.
            indices: Sample ids ``(B,)``, int64, for loaders whose batches are not what the sampler drew (a collate
                function that drops samples, or adds crops or views; a loader that reorders). An id may come several
                times: the mean of its rows is recorded. None: the ids that the sampler drew.
            loader: Key or position of the train loader whose batch these losses are of, where there are several. Needed
                if several are pruned, ``ScoreRegistry(loader=[...])``; of one that is not, it is a plain mean.
            record: Record these losses. When a step calls this several times, the first recording call counts.

        Returns:
            A scalar in the dtype of ``losses``; 0 for an empty batch, or where all weights are 0.

        Raises:
            TypeError: If ``losses`` is not a floating-point tensor.
            ValueError: If it is a scalar, its length is not that of the batch, or another argument does not fit it.

        Example:
            The loss of a step with class weights, before and after:

            >>> import torch
            >>> import torch.nn.functional as F
            >>> logits, y = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
            >>> weight = torch.tensor([0.2, 5.0])
            >>> F.cross_entropy(logits, y, weight=weight, reduction="mean")
            tensor(0.9860)
            >>> losses = F.cross_entropy(logits, y, reduction="none")  # without the weights
            >>> WeightedLossMixin().weighted_loss(losses, sample_weight=weight[y])
            tensor(0.9860)
        """
        return weighted_loss(
            step_of(self._pruning_step, loader),
            losses,
            mask=mask,
            normalize=normalize,
            sample_weight=sample_weight,
            logits=logits,
            targets=targets,
            features=features,
            grad_norm=grad_norm,
            indices=indices,
            record=record,
        )

    def pruned_scheduler_calls(self, scheduler: Any) -> int:
        """Return how often to step a learning-rate scheduler now, so that it ends on time in shortened epochs.

        Only modules that override ``lr_scheduler_step`` themselves, or step schedulers under manual optimization, need
        this: step ``scheduler`` that many times, where you would once. In manual optimization, once a batch.
        """
        step = _first(self._pruning_step)
        return 1 if step is None or step.scheduler_calls is None else step.scheduler_calls(scheduler)

    @property
    def pruned_global_step(self) -> int:
        """The optimizer step that the full run would be at: ``global_step``, where nothing was left out.

        For schedulers that are told the step, as timm's are: ``scheduler.step_update(self.pruned_global_step)``.
        """
        step = _first(self._pruning_step)
        return int(self.global_step) if step is None or step.full_step is None else step.full_step()

    if not TYPE_CHECKING:

        def log(self, *args: Any, **kwargs: Any) -> None:
            """Log as Lightning does, but nothing while a step is run only to learn its losses."""
            step = _first(self._pruning_step)
            if step is None or not step.probing:
                super().log(*args, **kwargs)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a step-interval schedule in proportion to the full epoch; others as Lightning does."""
        for _ in range(self.pruned_scheduler_calls(scheduler)):
            super().lr_scheduler_step(scheduler, metric)


def _first(steps: StepRecord | Steps | None) -> StepRecord | None:
    """Return the running step; of several loaders', the first one's, which knows all that is not of one loader."""
    return steps.first if isinstance(steps, Steps) else steps
