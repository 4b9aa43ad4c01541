"""OrderDP (Jin, Xu et al., ICLR 2026): the hardest of a random candidate set, a fixed number every epoch."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of
from lightning_prune.core.checks import check_int, check_scores
from lightning_prune.core.part import Part
from lightning_prune.core.plan import Selection, num_keep, random_submask
from lightning_prune.core.ratio import Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.rng import resolve_generator
from lightning_prune.core.stats import infinite_where_nonfinite
from lightning_prune.core.table import SampleTable
from lightning_prune.trainer.callback import PruningCallback

_BOUNDS = {"closed_low": False, "closed_high": True}


def orderdp(
    scores: Tensor,
    explore_size: int,
    exploit_size: int,
    *,
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> Selection:
    """Draw ``explore_size`` candidates uniformly, keep the ``exploit_size`` of them with the highest scores.

    Non-finite scores (NaN: never seen) rank above all others; ties are broken uniformly at random. The gradient over
    the kept samples is unbiased for the ordered surrogate loss of :func:`orderdp_inclusion`, not for the full loss.

    Args:
        scores: Losses ``(n,)``, as last recorded.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s].
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.
        part: Which part of the scores these are, where several processes share them; None: all.

    Returns:
        Exactly ``exploit_size`` ascending ids on the device of ``scores``, unweighted.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor or a size is not an int.
        ValueError: If ``scores`` is not ``(n,)`` with n >= 1, or a size is out of range.

    Note:
        Never-seen samples rank first. The published code gives them a constant score (3.0 or 1.0), which depends on the
        scale of the loss.

    Example:
        >>> orderdp(torch.tensor([0.3, 9.0, 0.1, 5.0]), 4, 2).indices.tolist()
        [1, 3]
    """
    check_scores("scores", scores)
    part = Part.whole(len(scores)) if part is None else part
    check_int("explore_size", explore_size, low=1, high=part.total)
    check_int("exploit_size", exploit_size, low=1, high=explore_size)
    generator = resolve_generator(generator)
    everyone = torch.ones_like(scores, dtype=torch.bool)
    candidates = ids_of(random_submask(everyone, explore_size, generator, part))
    values, part = infinite_where_nonfinite(scores.index_select(0, candidates)), part.narrow(len(candidates))
    threshold = part.kth_lowest(values, explore_size - exploit_size + 1)
    above = values > threshold
    above |= random_submask(values == threshold, exploit_size - part.count(above), generator, part)
    return Selection(candidates.index_select(0, ids_of(above)))


def orderdp_inclusion(num_samples: int, explore_size: int, exploit_size: int) -> Tensor:
    """Return the probability ``(n,)``, float64, that the sample of each rank is kept, highest score first (Eq. 3).

    ``gamma_j = sum_l C(j-1, l-1) C(n-j, s-l) / C(n, s)`` over ``l <= q``: the chance that rank j is a candidate and at
    most ``q - 1`` better ones are. They fall with j and add up to q. Computed from the falls
    ``gamma_j - gamma_{j+1}``, which are positive and known up to a factor; accurate to about 1e-12.

    Args:
        num_samples: Number of samples n.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s].

    Raises:
        ValueError: If a size is out of range.

    Example:
        >>> orderdp_inclusion(5, 3, 1)
        tensor([0.6000, 0.3000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
    """
    check_int("num_samples", num_samples, low=1)
    check_int("explore_size", explore_size, low=1, high=num_samples)
    check_int("exploit_size", exploit_size, low=1, high=explore_size)
    n, s, q = num_samples, explore_size, exploit_size
    if s == q:
        return torch.full((n,), s / n, dtype=torch.float64)
    # d_j = C(j-1, q-1) C(n-1-j, s-1-q) / C(n-1, s-1), j = q ... n-s+q, from the ratios of neighbours
    j = torch.arange(q, n - s + q, dtype=torch.float64)
    ratios = (j / (j - q + 1)).log() + ((n - s + q - j) / (n - 1 - j)).log()
    mode = int(torch.cat([torch.zeros(1, dtype=torch.float64), ratios.cumsum(0)]).argmax())
    left = -ratios[:mode].flip(0).cumsum(0).flip(0)  # sums start at the mode, where the terms that count are near 0
    falls = torch.cat([left, torch.zeros(1, dtype=torch.float64), ratios[mode:].cumsum(0)]).exp()
    survival = falls.flip(0).cumsum(0).flip(0) / falls.sum()
    gamma = torch.zeros(n, dtype=torch.float64)
    gamma[:q] = s / n
    gamma[q : n - s + q] = survival[1:] * (s / n)
    return gamma


def _both_stages(drop: float) -> dict[str, float]:
    """Return what keeps ``explore_ratio * exploit_ratio``, both alike (the paper's 30 % kept are 0.5 * 0.6)."""
    return dict.fromkeys(("explore_ratio", "exploit_ratio"), math.sqrt(1 - drop))


@final
class OrderDP(PruningCallback):
    """Train on the hardest of a random candidate set; the number kept is the same in every epoch.

    ``explore_ratio`` of all samples become candidates, ``exploit_ratio`` of those are trained: by default
    0.75 * 0.8 = 60 %. Nothing is re-weighted and nothing anneals. Samples never seen come first, so
    every sample is met.

    Args:
        explore_ratio: Share s / n of all samples that become candidates, in (0, 1], or a schedule.
        exploit_ratio: Share q / s of the candidates that are trained, in (0, 1], or a schedule. 1: random
            pruning.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Algorithm 1; selection per epoch, with the losses seen in training, as in
        the published code.

    Example:
        >>> OrderDP()
        OrderDP(explore_ratio=0.75, exploit_ratio=0.8)
    """

    shares_state = True
    set_by_ratio = RatioSetting(_both_stages)

    def __init__(
        self,
        explore_ratio: Ratio = 0.75,
        exploit_ratio: Ratio = 0.8,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("explore_ratio", explore_ratio, **_BOUNDS)
        check_schedule("exploit_ratio", exploit_ratio, **_BOUNDS)
        self.explore_ratio = explore_ratio
        self.exploit_ratio = exploit_ratio

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Draw this epoch's candidates and keep the hardest."""
        progress = registry.moment(epoch).progress
        explore_size = num_keep(
            registry.num_samples, ratio_at("explore_ratio", self.explore_ratio, progress, **_BOUNDS)
        )
        exploit_size = num_keep(explore_size, ratio_at("exploit_ratio", self.exploit_ratio, progress, **_BOUNDS))
        return orderdp(registry.scores, explore_size, exploit_size, generator=generator, part=registry.part)
