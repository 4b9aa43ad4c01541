"""Small pure functions that several methods need."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable


def num_pruning_epochs(max_epochs: int, anneal_ratio: float) -> int:
    """Return how many epochs of the run may prune: epoch e (from 0) does if ``e + 1 <= max_epochs * anneal_ratio``.

    Example:
        >>> [num_pruning_epochs(e, 0.875) for e in (200, 100, 90, 10)]
        [175, 87, 78, 8]
    """
    return math.floor(max_epochs * anneal_ratio + 1e-9)


def is_annealing(registry: SampleTable, epoch: int, anneal_ratio: float) -> bool:
    """Return whether ``epoch`` belongs to the last part of the run, which trains without pruning.

    Runs limited by ``max_epochs`` are divided by epochs; runs limited by ``max_steps``, by optimizer steps done at the
    epoch's start. A run without a limit never anneals.
    """
    check_ratio("anneal_ratio", anneal_ratio, closed_high=True)
    if registry.max_epochs is not None and epoch >= num_pruning_epochs(registry.max_epochs, anneal_ratio):
        return True
    return registry.max_steps is not None and registry.global_step >= registry.max_steps * anneal_ratio


def output_grads(step: StepRecord, method: str) -> Tensor:
    """Return the gradients ``(B, C)``, float32, of the cross-entropy by the logits, ``softmax(z) - onehot(y)``.

    Raises:
        ValueError: If the training step passed no logits or targets, or not ``(B, C)`` and ``(B,)`` class ids.
    """
    logits, targets = step.logits, step.targets
    if logits is None or targets is None:
        missing = [name for name, value in (("logits", logits), ("targets", targets)) if value is None]
        raise ValueError(
            f"Expected logits and targets, whose gradients {method} goes by, but the training step passed no "
            f"{' and no '.join(missing)}. Return `self.weighted_loss(losses, logits=logits, targets=targets)`."
        )
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"Expected `logits` (B, C) and `targets` (B,) of class ids, whose gradients {method} goes by, but "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)} {targets.dtype}."
        )
    errors = logits.float().softmax(1)
    errors.scatter_add_(1, targets.long()[:, None], -torch.ones_like(errors[:, :1]))
    return errors


def output_grad_norm(step: StepRecord, method: str) -> Tensor:
    """Return the norms ``(B,)`` of :func:`output_grads`."""
    return torch.linalg.vector_norm(output_grads(step, method), dim=1)  # type: ignore[no-any-return]


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
