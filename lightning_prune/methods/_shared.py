"""Small pure functions that several methods need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_prune._dispatch import count_true, is_finite, is_less

if TYPE_CHECKING:
    from lightning_prune.mixin import StepRecord

_CHUNK = 1 << 16
"""Elements summed at a time: torch on the CPU would first copy the whole tensor to float64."""


def double_sum(values: Tensor) -> Tensor:
    """Return the float64 sum of ``values`` ``(n,)``, a 0-d tensor."""
    return torch.stack([chunk.sum(dtype=torch.float64) for chunk in torch.split(values, _CHUNK)]).sum()


def finite_mean(scores: Tensor) -> Tensor:
    """Return the float64 mean of the finite scores, a 0-d tensor; NaN if there is none.

    In float32 the mean of equal values can lie above all of them, which would mark every sample as easy.
    """
    total = double_sum(scores)
    if bool(total.isfinite()):  # then so is every score: a float64 sum of float32 values does not overflow
        return total / len(scores)
    finite = is_finite(scores)
    return scores.nan_to_num(0, 0, 0).sum(dtype=torch.float64) / count_true(finite)


def below(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return where finite scores lie strictly below a 0-d float64 threshold, exactly, without a float64 copy of them.

    Example:
        >>> below(torch.tensor([1.0, 2.0, -torch.inf, torch.nan]), torch.tensor(1.5, dtype=torch.float64))
        tensor([ True, False, False, False])
    """
    bound = threshold.to(scores.dtype)
    above = torch.nextafter(bound, torch.full_like(bound, torch.inf))
    bound = torch.where(bound < threshold, above, bound)  # the least score that is not below the threshold
    low = is_less(scores, bound)
    return low if bool(scores.amin() > -torch.inf) else low & (scores > -torch.inf)  # a NaN makes the least one NaN


def surely_finite(scores: Tensor) -> bool:
    """Return whether the sum of the scores is finite, and so is each; without a temporary."""
    return bool(scores.sum().isfinite())


def count_nonfinite(scores: Tensor) -> int:
    """Return how many scores are NaN or infinite."""
    if surely_finite(scores):
        return 0
    return len(scores) - count_true(is_finite(scores))


def infinite_where_nonfinite(scores: Tensor) -> Tensor:
    """Return scores ``(n,)`` with NaN and infinite ones at +inf: first, for rules that keep the highest."""
    return scores if surely_finite(scores) else scores.nan_to_num(torch.inf, torch.inf, torch.inf)


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
