"""Importance sampling (Salaün et al., 2023, 2024): draw in proportion to gradients, weigh by the inverse chance."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import count_true, ids_of, is_finite, to_device
from lightning_prune.core.checks import check_int, check_ratio, check_scores
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.part import Part
from lightning_prune.core.plan import Selection
from lightning_prune.core.plan import num_keep as count_kept
from lightning_prune.core.ratio import FIRST_FULL, Ratio, check_schedule, ratio_at
from lightning_prune.core.rng import own_generator, permutation, resolve_generator
from lightning_prune.core.stats import count_nonfinite, finite_mean
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._periodic import first_where_unknown, moving_average
from lightning_prune.methods._shared import output_grad_norm, output_grads
from lightning_prune.methods._water_filling import water_fill, water_fill_part
from lightning_prune.trainer.callback import PruningCallback

_IMPORTANCE = "importance"
_LEAST_FLOOR = 1e-6
"""Floor that is in force when the user asks for none: every sample must have a chance, or the gradient is biased."""


def importance_inclusion(importance: Tensor, num_keep: int, *, part: Part | None = None) -> Tensor:
    """Return inclusion probabilities in proportion to importance that add up to ``num_keep``, none above 1.

    ``pi_i = min(1, tau q_i)``, with the one ``tau`` that makes them add up. Zeros get what the others leave, in equal
    parts: nothing, unless fewer than ``num_keep`` are positive. Non-finite values (NaN: never seen) get 1, or equal
    parts if there are more of them than ``num_keep``.

    Args:
        importance: Importance ``(n,)``, >= 0, in any unit.
        num_keep: Expected number of samples k, in [1, n].
        part: Which part of the values these are, where several processes share them; None: all. Of a part, the
            probabilities are those of the whole up to rounding.

    Returns:
        Probabilities ``(n,)``, float64, on the device of ``importance``.

    Raises:
        TypeError: If ``importance`` is not a floating-point tensor or ``num_keep`` not an int.
        ValueError: If ``importance`` is not ``(n,)`` with n >= 1 or has negative values, or ``num_keep`` is out of
            range.

    Example:
        >>> importance_inclusion(torch.tensor([1.0, 2.0, 9.0]), 2)
        tensor([0.3333, 0.6667, 1.0000], dtype=torch.float64)
    """
    check_scores("importance", importance)
    part = Part.whole(len(importance)) if part is None else part
    check_int("num_keep", num_keep, low=1, high=part.total)
    return _inclusion(importance, num_keep, part)


def _inclusion(importance: Tensor, num_keep: int, part: Part) -> Tensor:
    if part.any(count_nonfinite(importance) > 0):
        return _with_nonfinite(importance, num_keep, part)
    lowest = float(importance.min()) if len(importance) else 1.0
    if part.any(lowest < 0):
        raise ValueError(f"Expected `importance` >= 0, but got {lowest}.")
    num_positive = part.sum(len(importance) if lowest > 0 else count_true(importance > 0))
    if num_positive <= num_keep:
        positive = importance > 0
        share = (num_keep - num_positive) / max(1, part.total - num_positive)
        return positive.double().masked_fill_(~positive, share)
    if part.world_size > 1:
        return water_fill_part(importance, num_keep, part)
    budget = torch.tensor([num_keep], dtype=torch.float64, device=importance.device)
    return water_fill(importance[None], budget)[0]


def _with_nonfinite(importance: Tensor, num_keep: int, part: Part) -> Tensor:
    finite = is_finite(importance)
    finite_part = part.narrow(count_true(finite))
    num_first = part.total - finite_part.total
    chances = (~finite).double().mul_(min(1, num_keep / num_first))
    if num_first < num_keep:
        chances[finite] = _inclusion(importance[finite], num_keep - num_first, finite_part)
    return chances


def multiple_importance(output_grads: Tensor) -> Tensor:
    """Return the importance of samples under one distribution per output, all of which draw alike.

    ``sum_c |g_ic| / sum_j |g_jc|``: a sample's chance by output c is in proportion to its gradient there, so an output
    with small gradients, as of a rare class, draws as many samples as the others. Drawn by this importance and weighted
    by the inverse chance, the distributions are combined by the balance heuristic of multiple importance sampling.

    Args:
        output_grads: Gradients of the losses by each output ``(n, C)``; of a sample with a NaN or infinite one nothing
            is known.

    Returns:
        ``(n,)``, of the dtype of ``output_grads``, mean 1 over the known ones (unless an output has no gradient at
        all, which draws nothing); NaN: unknown.

    Raises:
        TypeError: If ``output_grads`` is not a floating-point tensor.
        ValueError: If it is not ``(n, C)`` with n, C >= 1.

    References:
        Salaün et al., "Multiple Importance Sampling for Stochastic Gradient Estimation", 2024, arXiv:2407.15525.

    Example:
        >>> multiple_importance(torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 0.1]]))
        tensor([1.1250, 0.3750, 1.5000])
    """
    if not isinstance(output_grads, Tensor) or not output_grads.is_floating_point():
        got = output_grads.dtype if isinstance(output_grads, Tensor) else type(output_grads).__name__
        raise TypeError(f"Expected `output_grads` to be a floating-point tensor, but got {got}.")
    if output_grads.dim() != 2 or output_grads.numel() == 0:
        raise ValueError(
            f"Expected `output_grads` to have shape (n, C) with n, C >= 1, but got {tuple(output_grads.shape)}."
        )
    known = output_grads.isfinite().all(1)
    sizes = output_grads.abs().where(known[:, None], 0).double()
    totals = sizes.sum(0)
    shares = torch.where(totals > 0, sizes / totals, 0).mean(1) * known.sum()
    return shares.to(output_grads.dtype).where(known, torch.nan)


def systematic_sample(inclusion: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw ids without repeats with exactly the given inclusion probabilities, and as little spread in their number.

    Probabilities are laid end to end in random order, and read at points one apart from a random offset: a sample is
    drawn if a point falls on it. Their number is the sum of the probabilities, rounded down or up; weights
    ``1 / inclusion`` make ``E[w_i 1[i drawn]] = 1``, so any sum over all samples is estimated without bias.

    Args:
        inclusion: Probabilities ``(n,)``, in [0, 1].
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ascending ids ``(k,)``, int64, on the device of ``inclusion``.

    Raises:
        TypeError: If ``inclusion`` is not a floating-point tensor.
        ValueError: If it is not ``(n,)`` with n >= 1, or not in [0, 1].

    Example:
        >>> systematic_sample(torch.tensor([1.0, 0.0, 1.0])).tolist()
        [0, 2]
    """
    check_scores("inclusion", inclusion)
    low, high = (float(v) for v in torch.aminmax(inclusion))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Expected `inclusion` in [0, 1], but got values in [{low}, {high}].")
    return ids_of(_systematic_mask(inclusion, resolve_generator(generator), Part.whole(len(inclusion))))


def _systematic_mask(inclusion: Tensor, generator: torch.Generator, part: Part) -> Tensor:
    """Return which ``(n,)`` are drawn with probabilities ``(n,)`` in [0, 1]; see :func:`systematic_sample`.

    Of a part: the parts are laid end to end by rank, each in random order, and read at the same points.
    """
    keep = inclusion >= 1
    open_ids = ids_of(~keep)
    if part.sum(len(open_ids)) == 0:
        return keep
    order = to_device(permutation(len(open_ids), own_generator(generator, part)), inclusion.device)
    shuffled = open_ids.index_select(0, order)
    bounds = inclusion.new_zeros(len(shuffled) + 1, dtype=torch.float64)
    torch.cumsum(inclusion.index_select(0, shuffled), 0, dtype=torch.float64, out=bounds[1:])
    ends = part.gather(bounds[-1]).cumsum(0).tolist()
    before, total = [0.0, *ends][part.rank], ends[-1]
    scale = 1.0
    if 0 < abs(total - round(total)) <= 1e-6:  # rounding must not cost a sample, or add one
        scale = round(total) / total
    offset = (torch.randint(2**30, (), generator=generator).item() + 0.5) / 2**30  # never within rounding of 0 or 1
    bounds.add_(before).mul_(scale).add_(offset).floor_()
    return keep.index_fill_(0, shuffled.index_select(0, ids_of(bounds[1:] > bounds[:-1])), True)


@final
class ImportanceSampling(PruningCallback):
    """Draw each epoch's samples in proportion to their gradient's norm, without repeats; ``prune_ratio`` is of all.

    A sample's importance is the norm of its loss's gradient by the logits, if the training step passes them, as in
    ``self.weighted_loss(losses, logits=logits, targets=targets)``, or the norm itself as ``grad_norm``, else its loss.
    It is averaged over the epochs that trained the sample. Losses are weighted by the inverse of the probability to be
    drawn: each epoch's expected gradient sum is that of the full data, whatever the importance. The first epoch trains
    on everything. Every epoch has the same number of samples, and nothing anneals. With ``num_outputs`` there is one
    distribution for each output of the model, see :func:`multiple_importance`; it needs logits and targets.

    Args:
        prune_ratio: Share of all samples left out of each epoch, in [0, 1), or a schedule.
        smoothing: Weight of the old importance against a new one, in [0, 1). 0: the last one counts.
        floor: Least importance in force, as a share of the mean one, in [0, 1]: it bounds the weights. 0: a millionth.
            1: samples below the mean are all alike.
        num_outputs: Number of outputs C, to combine one distribution for each (4 C bytes a sample). None: one in all.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything (the first always does).
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range; at the first step, if ``num_outputs`` is not that of the logits.

    Note:
        The paper draws each batch with replacement and weighs by ``1 / (n p)``; here an epoch is drawn at once, without
        repeats, from probabilities that are fixed at its start. The weights of an epoch add up to about n, as in
        InfoBatch, not to the number drawn: its steps are fewer and larger. Samples without an importance, or whose last
        loss is not finite, come first, with weight 1; only while these are more than the places is the gradient biased
        (to them). The paper of 2024 can also combine its distributions by weights that are optimal for each parameter's
        gradient, which no weight of a loss can do; here they are those of the balance heuristic.

    References:
        Salaün et al., "Online Importance Sampling for Stochastic Gradient Optimization", 2023, arXiv:2311.14468;
        "Multiple Importance Sampling for Stochastic Gradient Estimation", 2024, arXiv:2407.15525.

    Example:
        >>> ImportanceSampling(prune_ratio=0.5)
        ImportanceSampling(prune_ratio=0.5, smoothing=0.3, floor=0.1, num_outputs=None)
    """

    ranks_by_scores = False
    weighs_losses = True
    record_names: tuple[str, ...] = (_IMPORTANCE,)
    set_by_ratio = FIRST_FULL

    def __init__(
        self,
        prune_ratio: Ratio = 0.3,
        smoothing: float = 0.3,
        floor: float = 0.1,
        num_outputs: int | None = None,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        check_ratio("smoothing", smoothing)
        check_ratio("floor", floor, closed_high=True)
        self.prune_ratio = prune_ratio
        self.smoothing = smoothing
        if num_outputs is not None:
            check_int("num_outputs", num_outputs, low=2)
            self.record_names = tuple(f"{_IMPORTANCE}_{c}" for c in range(num_outputs))
        self.floor = floor
        self.shares_state = num_outputs is None
        self.num_outputs = num_outputs

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the importance; NaN: none yet."""
        registry.add_column(_IMPORTANCE, fill=torch.nan, slots=self.num_outputs)

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return the gradient norms of the step, or its losses if it passed neither them nor logits and targets."""
        if self.num_outputs is not None:
            return self._by_output(step)
        if step.grad_norm is None and (step.logits is None or step.targets is None):
            return {_IMPORTANCE: step.recorded_losses}
        return {_IMPORTANCE: output_grad_norm(step, "ImportanceSampling")}

    def _by_output(self, step: StepRecord) -> dict[str, Tensor]:
        """Return the sizes of the gradients by each output."""
        sizes = output_grads(step, "ImportanceSampling(num_outputs=...)").abs()
        if sizes.shape[1] != self.num_outputs:
            raise ValueError(
                f"Expected `num_outputs={sizes.shape[1]}`, as the logits have, but got {self.num_outputs}."
            )
        return dict(zip(self.record_names, sizes.unbind(1), strict=True))

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Draw by importance, and weigh by the inverse of the chance."""
        ratio = ratio_at("prune_ratio", self.prune_ratio, registry.moment(epoch).progress)
        k, part = count_kept(registry.num_samples, 1 - ratio), registry.part
        if epoch == 0 or k == registry.num_samples:
            return Selection.all(len(part))
        importance = registry.column(_IMPORTANCE)
        if self.num_outputs is not None:
            importance = multiple_importance(importance.T)
        importance = first_where_unknown(importance, registry)
        least = finite_mean(importance, part).float() * max(self.floor, _LEAST_FLOOR)
        inclusion = importance_inclusion(torch.maximum(importance, least), k, part=part)
        drawn = Selection.from_mask(_systematic_mask(inclusion, generator, part))
        return replace(drawn, weights=inclusion.index_select(0, drawn.indices).reciprocal_().float())

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Move the importance of the trained samples."""
        importance = registry.column(_IMPORTANCE).view(-1, len(registry.part))
        new = torch.stack([record.extra[name] for name in self.record_names]).clamp_(min=0)
        moved = moving_average(importance.index_select(1, record.indices), new, 1 - self.smoothing)
        importance.index_copy_(1, record.indices, moved)
