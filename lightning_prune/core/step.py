"""What a training step and the epoch's log exchange, and the weighted loss that a step returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice, warn_on_first_rank
from lightning_prune.core.losses import (
    NORMALIZATIONS,
    Losses,
    Normalize,
    averages_of,
    told_of_zeros,
    total_losses,
    weighted_mean,
)
from lightning_prune.core.table import SampleTable

ABSENT = torch.finfo(torch.float32).min
"""Marks, in the epoch's log, a sample without a loss; NaN cannot, since it is a loss that must be reported."""


@final
class Probed(BaseException):
    """Ends a training step that was only run to learn its losses, once ``weighted_loss`` knows them.

    Not an `Exception`, so that no ``except Exception`` of the user's catches it.
    """


class RunningBatch(Protocol):
    """What a step may ask of the running epoch about its batch."""

    step_length: int
    """Number of samples that the step trains."""
    by_ids: bool
    """Whether weights are found by the ids that the step gives."""
    leaves_out: bool
    """Whether batches have samples with weight 0, of which nothing may come into the loss."""
    batch_length: int
    """Number of samples that the sampler drew for it."""
    num_dropped: int
    """Samples that were left out of the batches before it, on this rank."""

    @property
    def samples_before(self) -> float:
        """Samples of the batches before it, on each rank, those left out included."""

    @property
    def longest_batch(self) -> int:
        """Number of samples of the epoch's longest batch; the last one may be shorter."""

    @property
    def step_indices(self) -> Tensor:
        """Sample ids ``(B,)``, int64."""

    def weights_of(self, indices: Tensor | None) -> Tensor | None:
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
        full_step: Says at which optimizer step the run would be if nothing was left out, or None.
        watched: Whether to look, in the first step, if the weighted loss is what is trained.
        loader: What the user calls the loader whose batch it is, where there are several; None: it has no name.
        weights: Loss weights ``(B,)``, float32, a view of the epoch's; None: all ones.
        losses: Recorded losses ``(B,)``, float32 after recording; None until ``weighted_loss`` is called. They are
            weighted by nothing.
        logits: What was passed to ``weighted_loss``, detached, or None. Likewise ``targets``, ``features``,
            ``sample_weight``, ``grad_norm``.
        loss: What ``weighted_loss`` returned, with its graph, until the step ends; None before.
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
        self.full_step: Callable[[], int] | None = None
        self.weights: Tensor | None = None
        self.watched = False
        self.loader: str | int | None = None
        self._done: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Drop what the last step recorded."""
        self.losses: Tensor | None = None
        self.loss: Tensor | None = None
        self.logits: Tensor | None = None
        self.targets: Tensor | None = None
        self.features: Tensor | None = None
        self.sample_weight: Tensor | None = None
        self.grad_norm: Tensor | None = None
        self._elements: Tensor | None = None
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
        *,
        sample_weight: Tensor | None = None,
        grad_norm: Tensor | None = None,
        elements: Tensor | None = None,
    ) -> None:
        """Keep what ``weighted_loss`` was given, detached.

        ``present`` ``(B,)`` says which samples have a loss; ``elements`` ``(B, ...)`` are losses without a mask.
        """
        kept = losses.detach() if self.detach else losses
        # in float32: a lower precision would round the mark of an absent loss to -inf
        self.losses = kept if present is None else torch.where(present, kept.float(), ABSENT)
        self.logits = None if logits is None else logits.detach()
        self.targets = None if targets is None else targets.detach()
        self.features = None if features is None else features.detach()
        self.sample_weight = None if sample_weight is None else sample_weight.detach()
        self.grad_norm = None if grad_norm is None else grad_norm.detach()
        self._elements = None if elements is None else elements.detach()
        self.given_indices = indices

    def notice_zeros(self, rank: int) -> None:
        """Warn, in a run's first recorded step, of losses of which some look like padding: see `told_of_zeros`.

        Called after the step, so that a compiled one has no part in it; reads the device once in a run.
        """
        elements, self._elements = self._elements, None
        if not self.first_time("zeros") or elements is None:
            return
        if (told := told_of_zeros(elements, owner=self.owner)) is not None:
            warn_on_first_rank(told, rank)

    def first_time(self, what: str) -> bool:
        """Return whether this is asked for the first time in the run; for checks that read the device."""
        is_first = what not in self._done
        self._done.add(what)
        return is_first

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


@final
class Steps:
    """The running steps of several loaders that are pruned, of which a call of ``weighted_loss`` means one.

    Args:
        by_name: The step of each loader.
    """

    def __init__(self, by_name: dict[str | int, StepRecord]) -> None:
        self.by_name = by_name

    @property
    def first(self) -> StepRecord | None:
        """The step of the loader that is named first."""
        return next(iter(self.by_name.values()), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Steps:
        return Steps({})

    def __reduce__(self) -> tuple[type[Steps], tuple[dict[str | int, StepRecord]]]:
        return Steps, ({},)


def step_of(steps: StepRecord | Steps | None, loader: str | int | None) -> StepRecord | None:
    """Return the step that a call of ``weighted_loss`` means; None: of a loader that is not pruned, or outside a run.

    Raises:
        ValueError: If several loaders are pruned, and the call does not say which one it means.
    """
    if isinstance(steps, Steps):
        if loader is None and any(step.active for step in steps.by_name.values()):
            raise ValueError(
                "Expected `weighted_loss` to say whose losses these are, since several train DataLoaders are pruned, "
                f"but got no `loader`. Write `self.weighted_loss(losses, loader=...)` with one of "
                f"{list(steps.by_name)}, once for each."
            )
        return None if loader is None else steps.by_name.get(loader)
    if steps is None or loader is None or steps.loader is None or steps.loader == loader:
        return steps
    return None


def weighted_loss(
    step: StepRecord | None,
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
) -> Tensor:
    """Return the weighted mean of a step's per-sample losses, and record them; see `WeightedLossMixin.weighted_loss`.

    Args:
        step: The running step. None: there is none, and nothing is pruned or recorded.
        losses: Unreduced losses ``(B,)`` or ``(B, ...)``, or several such by name.
        mask: Of the shape of ``losses``: True where an element counts.
        normalize: What the mean is over, given a mask.
        sample_weight: ``(B,)``.
        logits: ``(B, C)``.
        targets: ``(B,)``, or ``(B, C)``.
        features: ``(B, D)``.
        grad_norm: ``(B,)``.
        indices: Sample ids ``(B,)``, int64. None: the ids that the sampler drew.
        record: Record these losses, unless an earlier call of the step did.

    Returns:
        A scalar in the dtype of ``losses``.

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If it is a scalar, its length is not that of the batch, or another argument does not fit it.
        Probed: If the step is only run to learn its losses.
    """
    owner = "self" if step is None else step.owner
    check_choice("normalize", normalize, NORMALIZATIONS)
    losses = total_losses(losses, owner=owner)
    per_sample, counts = averages_of(losses, mask)
    if sample_weight is not None:
        _check_one_each("sample_weight", sample_weight, per_sample, "of class weights, `sample_weight=weight[targets]`")
    if grad_norm is not None:
        _check_one_each("grad_norm", grad_norm, per_sample, "the norm of each sample's own gradient")
    weights = None if step is None else _weights_of(step, per_sample, indices)
    if step is not None and record and (step.probing or (step.active and step.losses is None)):
        step.record(
            per_sample,
            None if counts is None else counts > 0,
            logits,
            targets,
            features,
            indices,
            sample_weight=sample_weight,
            grad_norm=grad_norm,
            elements=losses if mask is None and losses.dim() > 1 else None,
        )
        if step.probing:
            raise Probed
    if weights is not None and step is not None and step.running is not None and step.running.leaves_out:
        per_sample = torch.where(weights > 0, per_sample, 0)  # 0 times NaN is NaN
    if len(per_sample) == 0:  # a collate function dropped the whole batch
        return losses.sum()
    plain = losses if mask is None else per_sample
    loss = _mean_of(plain, per_sample, weights, sample_weight, None if normalize == "sample" else counts)
    loss = loss if loss.dtype == losses.dtype else loss.to(losses.dtype)
    if step is not None and step.active:
        step.loss = loss
    return loss


def _mean_of(
    plain: Tensor, per_sample: Tensor, weights: Tensor | None, sample_weight: Tensor | None, counts: Tensor | None
) -> Tensor:
    """Return the mean of the losses ``(B,)``; where nothing weighs them, that of ``plain``, exactly."""
    if sample_weight is not None or counts is not None:
        return weighted_mean(per_sample, weights, sample_weight, counts)
    return plain.mean() if weights is None else (weights * per_sample).mean()


def _weights_of(step: StepRecord, per_sample: Tensor, indices: Tensor | None) -> Tensor | None:
    """Return the pruning weights ``(B,)`` of a step's losses; None: all are 1."""
    if step.probing or not step.active:
        return None
    weights, running = step.weights, step.running
    if running is not None and (indices is not None or running.by_ids):
        weights = running.weights_of(indices)
    if weights is not None and weights.shape != per_sample.shape:
        raise ValueError(wrong_length(len(per_sample), len(weights), owner=step.owner))
    return weights


def _check_one_each(name: str, values: Tensor, losses: Tensor, hint: str) -> None:
    """Raise unless there is one value for each sample."""
    if isinstance(values, Tensor) and values.shape == losses.shape:
        return
    got = str(tuple(values.shape)) if isinstance(values, Tensor) else type(values).__name__
    raise ValueError(f"Expected `{name}` (B,), one for each of {len(losses)} samples, but got {got}. Pass {hint}.")


def wrong_length(num_losses: int, num_samples: int, *, owner: str = "self") -> str:
    """Return the message for losses that do not match the batch."""
    each = num_losses // max(1, num_samples)
    is_multiple = each > 1 and each * num_samples == num_losses
    reshape = (
        f", {each} for each sample. Average a sample's: `{owner}.weighted_loss(losses.view({num_samples}, -1))` where "
        "they stand side by side (tokens of flattened sequences), "
        f"`{owner}.weighted_loss(losses.view({each}, {num_samples}).mean(0))` where the batch is repeated (views one "
        "after another). "
    )
    return (
        f"Expected {num_samples} losses, one for each sample that the loader drew for this batch, but got "
        f"{num_losses}{reshape if is_multiple else '. '}If the collate function drops or adds samples, return their "
        f"dataset indices with the batch and pass them: `{owner}.weighted_loss(losses, indices=indices)`."
    )
