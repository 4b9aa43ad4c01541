"""Small pure functions that several methods need."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.moment import Moment
from lightning_prune.core.plan import num_keep
from lightning_prune.core.ratio import Ratio, ratio_at
from lightning_prune.core.step import StepRecord

_NOT_ONE = 0.02
"""How far from 1 the sum of a row of probabilities may be: in bfloat16 each of many has been rounded."""


def num_pruning_epochs(max_epochs: int, anneal_ratio: float) -> int:
    """Return how many epochs of the run may prune: epoch e (from 0) does if ``e + 1 <= max_epochs * anneal_ratio``.

    Example:
        >>> [num_pruning_epochs(e, 0.875) for e in (200, 100, 90, 10)]
        [175, 87, 78, 8]
    """
    return math.floor(max_epochs * anneal_ratio + 1e-9)


def is_annealing(moment: Moment, anneal_ratio: float) -> bool:
    """Return whether an epoch belongs to the last part of the run, which trains without pruning.

    Runs limited by ``max_epochs`` are divided by epochs; runs limited by ``max_steps``, by optimizer steps done at the
    epoch's start. A run without a limit never anneals.
    """
    check_ratio("anneal_ratio", anneal_ratio, closed_high=True)
    if moment.max_epochs is not None and moment.epoch >= num_pruning_epochs(moment.max_epochs, anneal_ratio):
        return True
    return moment.max_steps is not None and moment.step >= moment.max_steps * anneal_ratio


def output_grads(step: StepRecord, method: str) -> Tensor:
    """Return the gradients ``(B, C)``, float32, of each sample's term of the objective by its logits.

    That of the cross-entropy with probabilities t, ``softmax(z) - t``, times the sample's ``sample_weight``. Class ids
    are probabilities of 0 and 1. A smoothed label can only be seen where the training step passes it so: ``(B, C)``.

    Raises:
        ValueError: If the training step passed no logits or targets, or such that another loss may be meant.
    """
    logits, targets = step.logits, step.targets
    if logits is None or targets is None:
        missing = [name for name, value in (("logits", logits), ("targets", targets)) if value is None]
        raise ValueError(
            f"Expected logits and targets, whose gradients {method} goes by, but the training step passed no "
            f"{' and no '.join(missing)}. Return `{step.owner}.weighted_loss(losses, logits=logits, targets=targets)`."
        )
    is_soft = targets.is_floating_point()
    if logits.dim() != 2 or logits.shape[1] < 2 or targets.shape != (logits.shape if is_soft else logits.shape[:1]):
        raise ValueError(
            f"Expected `logits` (B, C) and `targets` (B,) of class ids or (B, C) of probabilities, whose gradients "
            f"{method} goes by, but got {tuple(logits.shape)} and {tuple(targets.shape)} {targets.dtype}. "
            f"{_other_loss(logits, targets)}"
        )
    errors = logits.float().softmax(1)
    if is_soft:
        _check_probabilities(step, targets, method)
        errors = errors - targets.float()
    else:
        errors.scatter_add_(1, targets.long()[:, None], -torch.ones_like(errors[:, :1]))
    return errors if step.sample_weight is None else errors * step.sample_weight[:, None].float()


def _other_loss(logits: Tensor, targets: Tensor) -> str:
    """Return what to write for a loss that logits and targets do not tell."""
    if logits.numel() == targets.numel():
        return (
            "These may be of a binary cross-entropy or of a regression. Pass the norms of each sample's gradient: "
            "`grad_norm=(logits.detach().sigmoid() - targets).abs().flatten()` for "
            "`F.binary_cross_entropy_with_logits`, `grad_norm=2 * (outputs.detach() - targets).abs().flatten()` for "
            "`F.mse_loss`."
        )
    return (
        "For sequences, and for any other loss, pass the norms (B,) of each sample's gradient by its logits as "
        "`grad_norm=`; docs/losses.md has the formula for tokens."
    )


def _check_probabilities(step: StepRecord, targets: Tensor, method: str) -> None:
    """Refuse targets ``(B, C)`` whose rows do not add up to 1: they are of another loss. Looks at the first step's."""
    if not step.first_time("probabilities"):
        return
    sums = targets.sum(1, dtype=torch.float32)
    if not bool(((sums - 1).abs() < _NOT_ONE).all()):
        raise ValueError(
            f"Expected `targets` (B, C) of probabilities, with rows that add up to 1, since the gradients that "
            f"{method} goes by are of the cross-entropy, but got sums from {float(sums.min()):.3g} to "
            f"{float(sums.max()):.3g}. "
            "For several labels a sample, with `F.binary_cross_entropy_with_logits` averaged over the classes, pass "
            "`grad_norm=(logits.detach().sigmoid() - targets).norm(dim=1) / logits.shape[1]`."
        )


def output_grad_norm(step: StepRecord, method: str) -> Tensor:
    """Return the norms ``(B,)`` of :func:`output_grads`, or of what the training step gave as ``grad_norm``."""
    if step.grad_norm is None:
        return torch.linalg.vector_norm(output_grads(step, method), dim=1)  # type: ignore[no-any-return]
    norms = step.grad_norm.float()
    return norms if step.sample_weight is None else norms * step.sample_weight.float().abs()


def ratio_of_step(step: StepRecord, prune_ratio: Ratio) -> float:
    """Return the share of a batch to leave out, which may be a schedule, for the step that runs."""
    return ratio_at("prune_ratio", prune_ratio, 0.0 if step.registry is None else step.registry.progress)


def num_picks(step: StepRecord, size: int, keep_ratio: float) -> int:
    """Return how many of the ``size`` samples of a batch are trained.

    Of a short last batch, two instead of one, where the others keep more: BatchNorm cannot train on a single sample.
    """
    k = num_keep(size, keep_ratio)
    is_short = step.running is not None and num_keep(max(size, step.running.longest_batch), keep_ratio) > 1
    return 2 if k == 1 < size and is_short else k


def random_order(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the positions ``(n,)`` of ``values`` from the lowest to the highest, NaN last, ties in random order."""
    shuffled = torch.randperm(len(values), generator=generator).to(values.device, non_blocking=True)
    return shuffled.index_select(0, values.index_select(0, shuffled).argsort(stable=True))


def weighted_draw(log_weights: Tensor, k: int, *, generator: torch.Generator) -> Tensor:
    """Draw ``k`` positions one after another, each in proportion to the weights of those that are left.

    By the Gumbel top-k trick: the k largest of ``log_weights + Gumbel noise`` have that law.

    Args:
        log_weights: Logarithms of the weights ``(n,)``, float64, on the CPU.
        k: Number of draws.
        generator: CPU generator.
    """
    uniform = torch.rand(len(log_weights), generator=generator, dtype=torch.float64)
    return (log_weights - uniform.log().neg_().log_()).topk(k).indices
