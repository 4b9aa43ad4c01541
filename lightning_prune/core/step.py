"""What a training step and the epoch's log exchange, and the weighted loss that a step returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from torch import Tensor

from lightning_prune.core.table import SampleTable

ABSENT = torch.finfo(torch.float32).min
"""Marks, in the epoch's log, a sample without a loss; NaN cannot, since it is a loss that must be reported."""

_REDUCTION_HINT = (
    'Compute the loss with `reduction="none"`, as in `F.cross_entropy(logits, targets, reduction="none")`, '
    "and pass it to `{owner}.weighted_loss(losses)`."
)


@final
class Probed(BaseException):
    """Ends a training step that was only run to learn its losses, once ``weighted_loss`` knows them.

    Not an `Exception`, so that no ``except Exception`` of the user's catches it.
    """


class RunningBatch(Protocol):
    """What a step may ask of the running epoch about its batch."""

    step_length: int
    """Number of samples that the step trains."""

    @property
    def step_indices(self) -> Tensor:
        """Sample ids ``(B,)``, int64."""

    def weights_of(self, indices: Tensor) -> Tensor | None:
        """Return the loss weights ``(B,)`` of samples by id, or None where nothing is weighted."""


@final
class StepRecord:
    """What one training step and the run exchange: weights in, detached per-sample values out.

    Args:
        registry: The per-sample state of the run. None: the step belongs to no run.
        detach: Keep what is recorded without its graph.
        owner: What the user calls ``weighted_loss`` on, for messages.

    Attributes:
        running: The running epoch, or None.
        active: True between the begin and the end of a step of a pruned run.
        probing: True while a step is run only to learn its losses: ``weighted_loss`` then ends it with `Probed`.
        scheduler_calls: Says how often a learning-rate scheduler is due at this optimizer step, or None.
        weights: Loss weights ``(B,)``, float32, a view of the epoch's; None: all ones.
        losses: Recorded losses ``(B,)``, float32 after recording; None until ``weighted_loss`` is called.
        logits: What was passed to ``weighted_loss``, detached, or None. Likewise ``targets``, ``features``.
        batch_loss: The scalar loss that ``training_step`` returned, detached, or None; set after the step.
    """

    def __init__(self, registry: SampleTable | None = None, *, detach: bool = True, owner: str = "self") -> None:
        self.registry = registry
        self.owner = owner
        self.detach = detach
        self.running: RunningBatch | None = None
        self.active = False
        self.probing = False
        self.scheduler_calls: Callable[[Any], int] | None = None
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
        kept = losses.detach() if self.detach else losses
        # in float32: a lower precision would round the mark of an absent loss to -inf
        self.losses = kept if present is None else torch.where(present, kept.float(), ABSENT)
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
        if self.running is None:
            raise RuntimeError("Expected the step to belong to a running epoch, but it does not.")
        return self.running.step_indices

    def __deepcopy__(self, memo: dict[int, Any]) -> StepRecord:
        return StepRecord()  # a copied module (EMA, SWA) is not the one in training

    def __reduce__(self) -> tuple[type[StepRecord], tuple[()]]:
        return StepRecord, ()


def weighted_loss(
    step: StepRecord | None,
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    logits: Tensor | None = None,
    targets: Tensor | None = None,
    features: Tensor | None = None,
    indices: Tensor | None = None,
    record: bool = True,
) -> Tensor:
    """Return the weighted mean of a step's per-sample losses, and record them; see `WeightedLossMixin.weighted_loss`.

    Args:
        step: The running step. None: there is none, and the value is a plain mean.
        losses: Unreduced losses ``(B,)`` or ``(B, ...)``.
        mask: Of the shape of ``losses``: True where an element counts.
        logits: ``(B, C)``.
        targets: ``(B,)``.
        features: ``(B, D)``.
        indices: Sample ids ``(B,)``, int64. None: the ids that the sampler drew.
        record: Record these losses, unless an earlier call of the step did.

    Returns:
        A scalar in the dtype of ``losses``.

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If it is a scalar, or its length is not that of the batch.
        Probed: If the step is only run to learn its losses.
    """
    per_sample, present = per_sample_losses(losses, mask, owner="self" if step is None else step.owner)
    weights = None
    if step is not None and step.probing:
        if record:
            step.record(per_sample, present, logits, targets, features, indices)
            raise Probed
    elif step is not None and step.active:
        weights = step.weights
        if indices is not None and step.running is not None:
            weights = step.running.weights_of(indices)
        if weights is not None and weights.shape != per_sample.shape:
            raise ValueError(wrong_length(len(per_sample), len(weights), owner=step.owner))
        if record and step.losses is None:
            step.record(per_sample, present, logits, targets, features, indices)
    if len(per_sample) == 0:  # a collate function dropped the whole batch
        return losses.sum()
    if weights is not None:
        loss = (weights * per_sample).mean()
        return loss if loss.dtype == losses.dtype else loss.to(losses.dtype)
    return losses.mean() if mask is None else per_sample.mean()


def per_sample_losses(
    losses: Tensor, mask: Tensor | None = None, *, owner: str = "self"
) -> tuple[Tensor, Tensor | None]:
    """Average unreduced losses per sample.

    Args:
        losses: ``(B,)`` or ``(B, ...)``, floating point.
        mask: True (or non-zero) where an element counts, of the shape of ``losses``. None: all do.
        owner: What the user calls ``weighted_loss`` on, for messages.

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
        hint = _REDUCTION_HINT.format(owner=owner)
        raise ValueError(f"Expected one loss per sample, shape (B,) or (B, ...), but got a scalar. {hint}")
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


def wrong_length(num_losses: int, num_samples: int, *, owner: str = "self") -> str:
    """Return the message for losses that do not match the batch."""
    return (
        f"Expected {num_samples} losses, one for each sample that the loader drew for this batch, but got "
        f"{num_losses}. If the collate function drops or adds samples, return their dataset indices with the batch and "
        f"pass them: `{owner}.weighted_loss(losses, indices=indices)`."
    )
