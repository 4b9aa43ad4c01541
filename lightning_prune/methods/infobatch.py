"""InfoBatch (Qin et al., ICLR 2024): drop a share of the samples below the mean loss, up-weight those that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor

from lightning_prune.core.arrays import to_device
from lightning_prune.core.checks import check_choice, check_int, check_ratio, check_scores
from lightning_prune.core.moment import Moment
from lightning_prune.core.part import Part
from lightning_prune.core.plan import Selection, random_submask
from lightning_prune.core.ratio import Arguments, Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.rng import resolve_generator, uniform
from lightning_prune.core.stats import below, finite_mean
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._shared import is_annealing
from lightning_prune.trainer.callback import PruningCallback


def infobatch(
    scores: Tensor,
    prune_ratio: float,
    *,
    mode: Literal["exact", "bernoulli"] = "exact",
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> Selection:
    """Keep what is at or above the mean; of what is strictly below, keep a share ``1 - prune_ratio``, re-weighted.

    The weight ``1 / (1 - prune_ratio)`` of a kept low sample makes ``E[w_i 1[i kept]] = 1`` for every sample, so the
    expected gradient sum of the epoch is that of the full data (paper, Eqs. 3-8). Non-finite scores (NaN: never seen)
    are kept with weight 1 and left out of the mean.

    Args:
        scores: Losses ``(n,)``.
        prune_ratio: Share of the below-mean samples left out, in [0, 1).
        mode: ``"exact"``: a count of ``(1 - prune_ratio) * low`` is drawn without replacement, its fraction rounded up
            with that probability. ``"bernoulli"``: independent coins, as in the paper.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.
        part: Which part of the scores these are, where several processes share them; None: all.

    Returns:
        Ascending ids on the device of ``scores``, with weights.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor.
        ValueError: If ``scores`` is not ``(n,)`` with n >= 1, or an argument is out of range.

    Note:
        The published code truncates the exact count, which never keeps the sample of a one-sample low set and loses
        mass; the fraction is rounded at random here, so the law above holds exactly.

    Example:
        >>> kept = infobatch(torch.tensor([0.0, 1.0, 2.0, 9.0]), 0.0)
        >>> kept.indices.tolist(), kept.weights.tolist()
        ([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    """
    check_scores("scores", scores)
    check_ratio("prune_ratio", prune_ratio)
    check_choice("mode", mode, ("exact", "bernoulli"))
    generator = resolve_generator(generator)
    part = Part.whole(len(scores)) if part is None else part
    keep_ratio = 1 - prune_ratio
    low = below(scores, finite_mean(scores, part))
    if mode == "exact":
        num_low = part.count(low)
        count = int(keep_ratio * num_low + torch.rand((), generator=generator, dtype=torch.float64).item())
        dropped = random_submask(low, num_low - count, generator, part)
    else:
        dropped = low & to_device(uniform(generator, part) >= keep_ratio, low.device)
    kept = Selection.from_mask(dropped.logical_not_())
    del dropped  # memory that the weights can have
    weight_if_low = torch.tensor(1 / keep_ratio, dtype=torch.float32, device=scores.device)
    return replace(kept, weights=torch.where(low.index_select(0, kept.indices), weight_if_low, 1.0))


def adjusted_epochs(max_epochs: int, saved: float, target: float) -> int:
    """Return the epochs in which a run that saves a share trains as much as one of ``max_epochs`` that saves another.

    InfoBatch saves what its losses allow, so its authors set the share of a comparison by the number of epochs:
    "adjusted epochs", more where it saves more than the share that is asked for, fewer where it saves less.

    Args:
        max_epochs: Epochs of the full run.
        saved: Share that the method saves, in [0, 1): `prune/saved_fraction` of a run of ``max_epochs``.
        target: Share of the full run that is to be saved, in [0, 1).

    Returns:
        ``max_epochs * (1 - target) / (1 - saved)``, rounded, at least 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> adjusted_epochs(200, saved=0.37, target=0.3), adjusted_epochs(200, saved=0.37, target=0.7)
        (222, 95)
    """
    check_int("max_epochs", max_epochs, low=1)
    check_ratio("saved", saved)
    check_ratio("target", target)
    return max(1, round(max_epochs * (1 - target) / (1 - saved)))


def _active(moment: Moment, given: Arguments) -> float:
    """Return whether an epoch leaves something out: not the first, in which nothing is known, nor those at the end."""
    return float(moment.epoch > 0 and not is_annealing(moment, given["anneal_ratio"]))


@final
class InfoBatch(PruningCallback):
    """Skip a share of the samples whose loss is below the mean; ``prune_ratio`` is that share, not of all samples.

    About 60-80 % of the losses lie below the mean, so 0.5 saves about 30-40 % of the sample-steps
    (`prune/saved_fraction` shows what was really saved). The kept ones of them are weighted by
    ``1 / (1 - prune_ratio)``: the expected gradient is that of the full data. The last epochs train on
    everything ("annealing").

    Args:
        prune_ratio: Share of the below-mean samples left out, in [0, 1), or a schedule. Default 0.5, as in the paper.
        anneal_ratio: Share of the run after which every epoch is full, in [0, 1]: epoch e (from 0) prunes if
            ``e + 1 <= max_epochs * anneal_ratio``. 1: prune to the end.
        mode: ``"exact"`` (a fixed count, lower variance) or ``"bernoulli"`` (independent coins, as in the paper).
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything (the first epoch always does: nothing is known yet).
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024,
        arXiv:2303.04947.

    Example:
        >>> InfoBatch(prune_ratio=0.5)
        InfoBatch(prune_ratio=0.5, anneal_ratio=0.875, mode='exact')
    """

    weighs_losses = True
    shares_state = True
    set_by_ratio = RatioSetting(
        most=0.9,
        active=_active,
        pilots=(0.5,),
        bound="It only leaves out samples below the mean loss, at most 90 % of them since the others weigh 10, not "
        "in the first epoch and not while it anneals. It reaches further with `anneal_ratio=1.0`; OrderDP and RePB "
        "reach almost everything.",
    )

    def __init__(
        self,
        prune_ratio: Ratio = 0.5,
        anneal_ratio: float = 0.875,
        mode: Literal["exact", "bernoulli"] = "exact",
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        check_ratio("anneal_ratio", anneal_ratio, closed_high=True)
        check_choice("mode", mode, ("exact", "bernoulli"))
        self.prune_ratio = prune_ratio
        self.anneal_ratio = anneal_ratio
        self.mode = mode

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Prune by the registry's scores, or keep everything in the annealing phase."""
        moment = registry.moment(epoch)
        if is_annealing(moment, self.anneal_ratio):
            return Selection.all(len(registry.part), registry.scores.device)
        ratio = ratio_at("prune_ratio", self.prune_ratio, moment.progress)
        return infobatch(registry.scores, ratio, mode=self.mode, generator=generator, part=registry.part)
