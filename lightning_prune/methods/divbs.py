"""DivBS (Hong et al., ICML 2024): of each batch, train on samples whose gradients together stand for all of it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.ratio import Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.rng import resolve_generator
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._shared import num_picks, output_grads, ratio_of_step
from lightning_prune.trainer.callback import PruningCallback

_EXHAUSTED = 1e-10
"""Share of the mean squared norm below which what is left of the gradients counts as nothing."""


def divbs(
    output_grads: Tensor,
    features: Tensor,
    num_keep: int,
    *,
    sample: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pick samples one by one, each for what it has of the mean gradient that those before it have not.

    The gradient of a sample by the last layer's weights is the outer product of its output gradient and its features.
    A pick j removes its direction from all gradients (Gram-Schmidt); the next is chosen by the absolute inner product
    of what is left of a gradient and of the mean. This works on the (B, B) matrix of inner products, so no gradient is
    ever formed: O(B^2 k) instead of O(B k C D). Not unbiased: a subset that covers the batch, trained with weight 1.

    Args:
        output_grads: Gradients of the loss by the logits ``(B, C)``.
        features: Inputs of the last layer ``(B, D)``.
        num_keep: Samples to pick, in [1, B].
        sample: Draw each pick with chances in proportion to the inner products, as the published code does. False:
            take the largest.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Positions ``(num_keep,)``, int64, without repeats, in the order of picking. Once the gradients are spanned, the
        rest is drawn uniformly.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If shapes do not fit, or ``num_keep`` is out of range.

    Note:
        The published code does not exclude picked samples, so that rounding errors may pick them again.

    Example:
        >>> grads, features = torch.tensor([[3.0], [3.0], [1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> divbs(grads, features, 2, sample=False).tolist()
        [0, 2]
    """
    for name, value in (("output_grads", output_grads), ("features", features)):
        if not value.is_floating_point():
            raise TypeError(f"Expected `{name}` to be a floating-point tensor, but got {value.dtype}.")
        if value.dim() != 2 or len(value) != len(output_grads) or len(value) == 0:
            raise ValueError(
                f"Expected `output_grads` (B, C) and `features` (B, D) with B >= 1, but got "
                f"{tuple(output_grads.shape)} and {tuple(features.shape)}."
            )
    size = len(output_grads)
    check_int("num_keep", num_keep, low=1, high=size)
    coins = torch.rand(num_keep, generator=resolve_generator(generator), dtype=torch.float64)
    coins = coins.to(features.device, non_blocking=True)

    a = output_grads.double().nan_to_num(0, 0, 0)
    f = features.double().nan_to_num(0, 0, 0)
    inner = (a @ a.T) * (f @ f.T)  # inner products of what is left of the gradients
    with_mean = inner.mean(1)
    nothing = _EXHAUSTED * inner.diagonal().mean()
    free = torch.ones_like(with_mean)
    picks = torch.empty(num_keep, dtype=torch.int64, device=features.device)
    for t in range(num_keep):
        weights = with_mean.abs() * free
        spanned = (inner.diagonal().amax() <= nothing) | (weights.amax() == 0)
        weights = torch.where(spanned, free, weights)
        total = weights.cumsum(0)
        drawn = torch.searchsorted(total, coins[t] * total[-1], right=True).clamp_(max=size - 1)
        pick = (drawn if sample else torch.where(spanned, drawn, weights.argmax()))[None]
        picks[t] = pick[0]
        free = free.index_fill(0, pick, 0)
        column = inner.index_select(1, pick).squeeze(1)
        norm = column.index_select(0, pick)
        direction = torch.where(norm > nothing, column / norm, 0)  # a gradient of which nothing is left has none
        with_mean = with_mean - direction * with_mean.index_select(0, pick)
        inner.addr_(direction, column, alpha=-1)
    return picks


@final
class DivBS(PruningCallback):
    """Train on a diverse part of each batch that stands for all of it; ``prune_ratio`` is the share of it left out.

    Before each step, a forward pass in eval mode gives logits and features, from which the gradients by the last
    layer's weights follow; samples are then picked one by one for what they add. Use a large batch: the paper keeps 32
    of 320.

    ``training_step`` must return ``self.weighted_loss(losses, logits=logits, targets=targets, features=features)``,
    with features the inputs of the last layer; it is run up to that call.

    Args:
        prune_ratio: Share of a batch left out, in [0, 1), or a schedule. At least one sample stays.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter. Here they are not.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range; in the first step, if logits, targets or features are not given.

    References:
        Hong et al., "Diversified Batch Selection for Training Acceleration", ICML 2024, arXiv:2406.04872.

    Example:
        >>> DivBS(prune_ratio=0.5)
        DivBS(prune_ratio=0.5)
    """

    ranks_by_scores = False
    picks_in_batch = True
    picks_by_losses = False
    set_by_ratio = RatioSetting(most=0.9)

    def __init__(
        self,
        prune_ratio: Ratio = 0.5,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        self.prune_ratio = prune_ratio

    def picks_now(self, registry: SampleTable, epoch: int, batch_idx: int) -> bool:
        """Return whether there is anything to leave out."""
        return ratio_at("prune_ratio", self.prune_ratio, registry.progress) > 0

    def pick(self, step: StepRecord, generator: torch.Generator) -> Tensor:
        """Pick by the gradients of the last layer."""
        grads = output_grads(step, "DivBS")
        if step.features is None:
            raise ValueError(
                "Expected the features of the last layer, which DivBS needs, but the training step passed none. "
                "Return `self.weighted_loss(losses, logits=logits, targets=targets, features=features)`."
            )
        k = num_picks(step, len(grads), 1 - ratio_of_step(step, self.prune_ratio))
        return divbs(grads / len(grads), step.features.flatten(1), k, generator=generator).sort().values
