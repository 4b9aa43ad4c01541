"""The one method that a user's module calls: `weighted_loss`, which applies the epoch's weights and records losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from lightning_prune.registry import ScoreRegistry

    _Base = LightningModule
else:
    _Base = object

ABSENT = torch.finfo(torch.float32).min
"""Marks, in the epoch's log, a sample without a loss; NaN cannot, since it is a loss that must be reported."""

_REDUCTION_HINT = (
    'Compute the loss with `reduction="none"`, as in `F.cross_entropy(logits, targets, reduction="none")`, '
    "and pass it to `self.weighted_loss(losses)`."
)


class Probed(BaseException):
    """Ends a training step that was only run to learn its losses, once ``weighted_loss`` knows them.

    Not an `Exception`, so that no ``except Exception`` of the user's catches it.
    """


class StepRecord:
    """What one training step and the registry exchange: weights in, detached per-sample values out.

    Attributes:
        active: True between ``on_train_batch_start`` and ``on_train_batch_end`` of a pruned fit.
        probing: True while a step is run only to learn its losses: ``weighted_loss`` then ends it with `Probed`.
        weights: Loss weights ``(B,)``, float32, a view of the epoch's; None: all ones.
        losses: Recorded losses ``(B,)``, float32 after recording; None until ``weighted_loss`` is called.
        logits: What the module passed to ``weighted_loss``, detached, or None. Likewise ``targets``, ``features``.
        batch_loss: The scalar loss that ``training_step`` returned, detached, or None; set after the step.
    """

    def __init__(self, registry: ScoreRegistry | None = None) -> None:
        self.registry = registry
        self.active = False
        self.probing = False
        self.weights: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Drop what the last step recorded."""
        self.losses: Tensor | None = None
        self.logits: Tensor | None = None
        self.targets: Tensor | None = None
        self.features: Tensor | None = None
        self.given_indices: Tensor | None = None
        self.batch_loss: Tensor | None = None

    def record(
        self,
        losses: Tensor,
        present: Tensor | None,
        logits: Tensor | None,
        targets: Tensor | None,
        features: Tensor | None,
        indices: Tensor | None,
    ) -> None:
        """Keep what ``weighted_loss`` was given, detached; ``present`` ``(B,)`` says which samples have a loss."""
        detached = losses.detach()
        # in float32: a lower precision would round the mark of an absent loss to -inf
        self.losses = detached if present is None else torch.where(present, detached.float(), ABSENT)
        self.logits = None if logits is None else logits.detach()
        self.targets = None if targets is None else targets.detach()
        self.features = None if features is None else features.detach()
        self.given_indices = indices

    @property
    def recorded_losses(self) -> Tensor:
        """Recorded losses ``(B,)``, for methods, which are only called once there are some."""
        assert self.losses is not None  # noqa: S101  (narrowing)
        return self.losses

    @property
    def indices(self) -> Tensor:
        """Sample ids ``(B,)`` of the step, int64, on the registry's device."""
        if self.given_indices is not None:
            return self.given_indices
        if self.registry is None:
            raise RuntimeError("Expected the step to belong to a running fit, but it does not.")
        return self.registry.running.step_indices

    def __deepcopy__(self, memo: dict[int, Any]) -> StepRecord:
        return StepRecord()  # a copied module (EMA, SWA) is not the one in training

    def __reduce__(self) -> tuple[type[StepRecord], tuple[()]]:
        return StepRecord, ()


def per_sample_losses(losses: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Average unreduced losses per sample.

    Args:
        losses: ``(B,)`` or ``(B, ...)``, floating point.
        mask: True (or non-zero) where an element counts, of the shape of ``losses``. None: all do.

    Returns:
        The losses ``(B,)``, 0 for a sample with nothing unmasked, and which samples have something unmasked
        ``(B,)`` (None without a mask).

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If it has no batch dimension, or ``mask`` has another shape.

    Example:
        >>> per_sample_losses(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[1, 0], [0, 0]]))
        (tensor([1., 0.]), tensor([ True, False]))
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        got = f"{losses.dtype} tensor" if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"Expected `losses` to be a floating-point tensor of shape (B,) or (B, ...), but got {got}.")
    if losses.dim() == 0:
        raise ValueError(f"Expected one loss per sample, shape (B,) or (B, ...), but got a scalar. {_REDUCTION_HINT}")
    if mask is None:
        return (losses.flatten(1).mean(1) if losses.dim() > 1 else losses), None
    if mask.shape != losses.shape:
        raise ValueError(
            f"Expected `mask` to have the shape of `losses`, {tuple(losses.shape)}, but got {tuple(mask.shape)}."
        )
    mask = mask.bool()
    kept = torch.where(mask, losses, 0)
    if losses.dim() == 1:
        return kept, mask
    counts = mask.flatten(1).sum(1)
    return kept.flatten(1).sum(1) / counts.clamp(min=1), counts > 0


class WeightedLossMixin(_Base):
    """Gives a LightningModule `weighted_loss`; put it before ``LightningModule`` in the bases.

    Without a pruning callback, and outside training, `weighted_loss` is a plain mean, so the module can be used as
    before.

    Example:
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
        per_sample, present = per_sample_losses(losses, mask)
        step = self._pruning_step
        weights = None
        if step is not None and step.probing:
            if record:
                step.record(per_sample, present, logits, targets, features, indices)
                raise Probed
        elif step is not None and step.active:
            weights = step.weights
            if indices is not None and step.registry is not None:
                weights = step.registry.running.weights_of(indices)
            if weights is not None and weights.shape != per_sample.shape:
                raise ValueError(wrong_length(len(per_sample), len(weights)))
            if record and step.losses is None:
                step.record(per_sample, present, logits, targets, features, indices)
        if len(per_sample) == 0:  # a collate function dropped the whole batch
            return losses.sum()
        if weights is not None:
            loss = (weights * per_sample).mean()
            return loss if loss.dtype == losses.dtype else loss.to(losses.dtype)
        return losses.mean() if mask is None else per_sample.mean()

    def pruned_scheduler_calls(self, scheduler: Any) -> int:
        """Return how often to step a learning-rate scheduler now, so that it ends on time in shortened epochs.

        Only modules that override ``lr_scheduler_step`` themselves need this: step ``scheduler`` that many times.
        """
        step = self._pruning_step
        return 1 if step is None or step.registry is None else step.registry.scheduler_calls(scheduler)

    if not TYPE_CHECKING:

        def log(self, *args: Any, **kwargs: Any) -> None:
            """Log as Lightning does, but nothing while a step is run only to learn its losses."""
            if self._pruning_step is None or not self._pruning_step.probing:
                super().log(*args, **kwargs)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a step-interval schedule in proportion to the full epoch; others as Lightning does."""
        for _ in range(self.pruned_scheduler_calls(scheduler)):
            super().lr_scheduler_step(scheduler, metric)


def wrong_length(num_losses: int, num_samples: int) -> str:
    """Return the message for losses that do not match the batch."""
    return (
        f"Expected {num_samples} losses, one for each sample that the loader drew for this batch, but got "
        f"{num_losses}. If the collate function drops or adds samples, return their dataset indices with the batch and "
        "pass them: `self.weighted_loss(losses, indices=indices)`."
    )
