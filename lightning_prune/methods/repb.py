"""RePB (Zhou et al., ICLR 2026): prune within windows of steps, let absentees re-enter, weigh by attendance."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of, is_finite, to_device
from lightning_prune.core.checks import check_choice, check_int, check_number, check_ratio, check_scores
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.ratio import FIRST_FULL, Ratio, check_schedule, ratio_at
from lightning_prune.core.rng import resolve_generator, uniform
from lightning_prune.core.stats import surely_finite
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.core.windows import Judge, WholeWindows, Windows, judge_windows, window_runs
from lightning_prune.methods._shared import output_grad_norm
from lightning_prune.methods._water_filling import water_fill
from lightning_prune.trainer.callback import PruningCallback

_CHANCE = "repb_chance"
_RATIO = "repb_ratio"
_EPOCHS = "repb_epochs"
_BEFORE = "repb_before"
_KNOWN = "repb_known"
_SINCE = "repb_since"
_MISSED = "repb_missed"
_BOUNDS = {"closed_low": False, "closed_high": True}


def repb_retain(
    scores: Tensor, window_ids: Tensor, prune_ratio: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """Decide which trained samples stay: all at or above the mean of their window, of the others a random share.

    Eq. 1: ``s_i >= mean of its window``, or a coin with probability ``1 - prune_ratio``. A non-finite score stays, and
    is left out of the mean.

    Args:
        scores: Losses or other scores ``(m,)`` of the samples trained in an epoch.
        window_ids: Window ``(m,)``, int64, >= 0, in which each was trained.
        prune_ratio: Probability with which a sample below the mean leaves, in [0, 1).
        generator: CPU generator of the coins. None: a fresh one, seeded from the system's entropy.

    Returns:
        True where a sample stays ``(m,)``, on the device of ``scores``.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor or ``window_ids`` not an int64 one.
        ValueError: If a shape or ``prune_ratio`` is out of range.

    Example:
        >>> scores, windows = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([0, 0, 1, 1])
        >>> repb_retain(scores, windows, 0.0)
        tensor([True, True, True, True])
    """
    check_ratio("prune_ratio", prune_ratio)
    low = below_window_mean(scores, window_ids)
    coins = torch.rand(len(scores), generator=resolve_generator(generator), dtype=torch.float32)
    return ~low | to_device(coins >= prune_ratio, low.device)


def repb_resample(trained: Tensor, prune_ratio: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Decide which absentees re-enter: each with probability ``1 - prune_ratio``, independently (Eq. 2).

    Args:
        trained: True ``(n,)`` for the samples that the epoch trained.
        prune_ratio: Probability to stay absent, in [0, 1).
        generator: CPU generator of the coins. None: a fresh one, seeded from the system's entropy.

    Returns:
        True where an absentee re-enters ``(n,)``, on the device of ``trained``.

    Raises:
        TypeError: If ``trained`` is not a bool tensor.
        ValueError: If ``prune_ratio`` is out of range.

    Example:
        >>> repb_resample(torch.tensor([True, False]), 0.0)
        tensor([False,  True])
    """
    check_ratio("prune_ratio", prune_ratio)
    if trained.dtype != torch.bool:
        raise TypeError(f"Expected `trained` to be a bool tensor, but got {trained.dtype}.")
    coins = torch.rand(len(trained), generator=resolve_generator(generator), dtype=torch.float32)
    return ~trained & to_device(coins >= prune_ratio, trained.device)


def ctr_weights(counts: Tensor, num_epochs: int) -> Tensor:
    """Return the loss weights ``E / N_i`` (Eq. 3), float32: the inverse of a sample's attendance so far.

    Below 1 where a sample was drawn more often than there were epochs, as draws with repeats may do.

    For a sample that has attended a share p of the epochs, the weight ``1 / p`` makes its part in the gradient, summed
    over epochs, about that of the full data; it is not unbiased in a single epoch, and ``E[1 / N] > 1 / E[N]``.

    Args:
        counts: How often ``(n,)`` each sample was in the epochs so far, at least once.
        num_epochs: Number of epochs so far.

    Raises:
        ValueError: If a count is less than 1.

    Example:
        >>> ctr_weights(torch.tensor([4, 2, 1, 8]), 4)
        tensor([1.0000, 2.0000, 4.0000, 0.5000])
    """
    check_int("num_epochs", num_epochs, low=1)
    if len(counts) and (low := int(counts.min())) < 1:
        raise ValueError(
            f"Expected `counts` >= 1, but got {low}: a sample that no epoch has trained has no weight. Give weights to "
            "those of the selection only."
        )
    return torch.full_like(counts, num_epochs, dtype=torch.float32) / counts  # scalar / tensor is 1 ulp off, as 41 / 41


def below_window_mean(scores: Tensor, window_ids: Tensor) -> Tensor:
    """Return where finite scores ``(m,)`` lie strictly below the float64 mean of their window ``(m,)``.

    Example:
        >>> below_window_mean(torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        tensor([ True, False, False, False])
    """
    check_scores("scores", scores)
    _check_windows(scores, window_ids)
    return _in_windows(scores, window_ids, _low, torch.bool)


def _in_windows(scores: Tensor, window_ids: Tensor, judge: Judge, dtype: torch.dtype) -> Tensor:
    """Return what a rule says of scores in windows of any order ``(m,)``, on the device of ``scores``."""
    order, lengths = window_runs(window_ids.cpu())
    if order is None:
        return judge_windows(scores.cpu(), lengths, judge, dtype).to(scores.device)
    judged = judge_windows(scores.cpu().index_select(0, order), lengths, judge, dtype)
    return torch.empty_like(judged).scatter_(0, order, judged).to(scores.device)


def _valid(rows: Tensor, inside: Tensor | None) -> Tensor | None:
    """Return which elements ``(v, l)`` count: those that are finite and no padding; None: all."""
    if surely_finite(rows.view(-1)):
        return inside
    return is_finite(rows) if inside is None else is_finite(rows).logical_and_(inside)


def _low(rows: Tensor, inside: Tensor | None) -> Tensor:
    """Return where scores ``(v, l)`` lie below the float64 mean of their row; non-finite ones never do."""
    valid, values = _valid(rows, inside), rows.double()
    if valid is None:
        return values < values.mean(1, keepdim=True)
    values = torch.where(valid, values, 0)
    return (values < values.sum(1, keepdim=True) / valid.sum(1, keepdim=True)).logical_and_(valid)


def _check_windows(scores: Tensor, window_ids: Tensor) -> None:
    if window_ids.dtype != torch.int64:
        raise TypeError(f"Expected `window_ids` to be an int64 tensor, but got {window_ids.dtype}.")
    if window_ids.shape != scores.shape:
        raise ValueError(
            f"Expected `window_ids` to have the shape of `scores`, {tuple(scores.shape)}, "
            f"but got {tuple(window_ids.shape)}."
        )
    if int(window_ids.min()) < 0:
        raise ValueError(f"Expected `window_ids` >= 0, but got {int(window_ids.min())}.")


def window_inclusion(scores: Tensor, window_ids: Tensor, prune_ratio: float) -> Tensor:
    """Return the chance ``(m,)``, float32, of each trained sample to stay when windows sample by importance.

    ``min(1, tau * s_i)``, where a window's ``tau`` makes the expected number that stays that of :func:`repb_retain`:
    ``1 - prune_ratio * (share below the mean)`` of the window. Negative scores count as 0; non-finite ones stay.

    Example:
        >>> window_inclusion(torch.tensor([0.0, 0.0, 0.0, 8.0]), torch.zeros(4, dtype=torch.int64), 0.5)
        tensor([0.5000, 0.5000, 0.5000, 1.0000])
    """
    check_scores("scores", scores)
    _check_windows(scores, window_ids)
    return _in_windows(scores, window_ids, partial(_chances, prune_ratio), torch.float32)


def _chances(prune_ratio: float, rows: Tensor, inside: Tensor | None) -> Tensor:
    """Return :func:`window_inclusion` of rows ``(v, l)``."""
    low, valid = _low(rows, inside), _valid(rows, inside)
    importance = rows.clamp(min=0)
    total = torch.tensor(rows.shape[1]) if valid is None else valid.sum(1)
    if valid is not None:
        importance = importance.where(valid, 0)
    means = importance.sum(1, dtype=torch.float64) / total
    # a little for those at zero, so that they share what the others leave
    least = torch.where(means > 0, 1e-6 * means, 1)[:, None]
    if bool((importance.amin(1, keepdim=True) < least).any()):
        importance = torch.maximum(importance.double(), least)
    if valid is not None:
        importance = importance.where(valid, 0)
    chances = water_fill(importance, total - prune_ratio * low.sum(1).double())
    return chances if valid is None else chances.where(valid, 1)


@final
class RePB(PruningCallback):
    """Skip samples whose score lies below the mean of the batches they were trained in; ``prune_ratio`` is a coin.

    A sample below the mean of its window (``window_batches`` steps) leaves the next epoch with probability
    ``prune_ratio``; an absent one re-enters with ``1 - prune_ratio``. If a share b of the trained samples is below, the
    kept share settles at ``(1 - prune_ratio) / (1 - prune_ratio + prune_ratio * b)``: about 0.6 by default
    (`prune/kept_fraction` shows it). Losses are weighted by the inverse of a sample's attendance so far,
    ``epochs / counts``, which balances the samples' parts in the gradient over the run, not in each epoch. The windows
    are judged after the epoch, from what it recorded: steps communicate nothing.

    Args:
        prune_ratio: Probability with which a sample below its window's mean leaves, and with which an absent one stays
            away, in [0, 1), or a schedule.
        window_batches: Steps in a window; a step is the union of all ranks' batches. The paper finds 1-4 best; a window
            should hold some 64 samples.
        score: ``"loss"``, or ``"grad_norm"``: the norm of the loss's gradient by the logits, which needs
            ``self.weighted_loss(losses, logits=logits, targets=targets)``.
        rule: ``"mean"``, or ``"importance"``: as many stay, but with chances in proportion to their score.
        target_keep: Share of the samples to keep, in (0, 1], or a schedule. The probability is then derived each epoch
            from the measured number below the mean, and ``prune_ratio`` is not used. None: off.
        max_weight: Upper bound of a weight, at least 1. None: a sample that was long away returns with a large one.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything (the first always does).
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch, with the probability in force as ``prune/repb_ratio``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The paper gives no default ratio. Samples that an epoch selected but did not train (a dropped last batch,
        a limit) stay: nothing is known against them; but that epoch does not count as attended. Samples whose last loss
        is not finite stay, too, with weight 1. The importance rule draws without repeats: a sample is in an epoch once
        or not at all, and CTR makes up for the chances.

    References:
        Zhou et al., "RePB", ICLR 2026; implemented from the paper (Eqs. 1-4).

    Example:
        >>> RePB(target_keep=0.7)
        RePB(prune_ratio=0.5, window_batches=1, score='loss', rule='mean', target_keep=0.7, max_weight=None)
    """

    weighs_losses = True
    shares_state = True
    set_by_ratio = replace(
        FIRST_FULL, arguments=lambda drop: {"target_keep": 1 - drop}, most=0.95, read_in="on_epoch_recorded"
    )

    def __init__(
        self,
        prune_ratio: Ratio = 0.5,
        window_batches: int = 1,
        score: Literal["loss", "grad_norm"] = "loss",
        rule: Literal["mean", "importance"] = "mean",
        target_keep: Ratio | None = None,
        max_weight: float | None = None,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        check_int("window_batches", window_batches, low=1)
        check_choice("score", score, ("loss", "grad_norm"))
        check_choice("rule", rule, ("mean", "importance"))
        if target_keep is not None:
            check_schedule("target_keep", target_keep, **_BOUNDS)
        if max_weight is not None:
            check_number("max_weight", max_weight, "a number >= 1 or None", max_weight >= 1)
        self.prune_ratio = prune_ratio
        self.window_batches = window_batches
        self.score = score
        self.rule = rule
        self.target_keep = target_keep
        self.max_weight = max_weight
        if score == "grad_norm":
            self.record_names = ("grad_norm",)
            self.ranks_by_scores = False

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare each sample's chance to be in the next epoch, and since when attendance is counted."""
        if registry.has_column(_CHANCE):  # a checkpoint of ours; early ones do not count the epochs
            registry.add_state(_EPOCHS, torch.tensor(registry.epoch, dtype=torch.int64))
        elif registry.part.any(bool(registry.counts.any())):  # a run of another method, whose epochs do not count
            registry.add_column(_BEFORE, dtype=torch.int32)
            registry.column(_BEFORE).copy_(registry.counts)
        registry.add_state(_EPOCHS, torch.tensor(0, dtype=torch.int64))
        registry.add_state(_KNOWN, torch.tensor(registry.num_samples, dtype=torch.int64))
        registry.add_column(_CHANCE, fill=1.0)
        ratio = ratio_at("prune_ratio", self.prune_ratio, registry.progress)
        registry.add_state(_RATIO, torch.tensor(ratio, dtype=torch.float32))

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return the gradient norms, if they are the score."""
        return {"grad_norm": output_grad_norm(step, "RePB(score='grad_norm')")} if self.score == "grad_norm" else {}

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Throw each sample's coin, and weigh those that are in by their attendance."""
        chance = registry.column(_CHANCE)
        part = registry.part
        kept = Selection.from_mask(to_device(uniform(generator, part), chance.device) < chance)
        if part.sum(len(kept)) == 0:  # a few samples may all leave by the importance rule; an epoch cannot be empty
            highest = part.gather(chance.max())
            if int(highest.argmax()) == part.rank:
                kept = Selection(chance.argmax()[None])
        epochs = int(registry.state[_EPOCHS])
        if epochs == 0:
            return kept
        counts = registry.counts.index_select(0, kept.indices)
        for apart in (_BEFORE, _MISSED):
            if registry.has_column(apart):
                counts = counts - registry.column(apart).index_select(0, kept.indices)
        # then some may not have attended yet, and weigh 1
        new = registry.num_samples > int(registry.state[_KNOWN]) or registry.has_column(_MISSED)
        weights = ctr_weights(counts.masked_fill(counts == 0, epochs) if new else counts, epochs)
        if registry.has_column(_SINCE):
            weights = weights * (1 - registry.column(_SINCE).index_select(0, kept.indices) / epochs)
        if not surely_finite(registry.losses):
            weights = weights.where(registry.losses.index_select(0, kept.indices).isfinite(), 1)
        return replace(kept, weights=weights if self.max_weight is None else weights.clamp_(max=self.max_weight))

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Set each sample's chance to be in the next epoch, from its window in this one."""
        registry.state[_EPOCHS] += 1
        self._take_in(registry)
        self._note_missed(registry, record)
        part = registry.part
        if part.sum(len(record.indices)) == 0:
            return
        selected = registry.selected
        windows = self._windows(registry, record)
        low = windows.judged(_low, torch.bool)
        unanswered, num_low = registry.unanswered, part.count(low)
        if unanswered is not None:
            num_low += part.count(unanswered & selected)
        progress = registry.moment(registry.epoch + 1).progress
        ratio = self._ratio(registry.num_samples, part.count(selected), num_low, progress)
        chance = registry.column(_CHANCE).copy_(selected).clamp_(min=1 - ratio)
        if unanswered is not None:
            chance.masked_fill_(unanswered, 1 - ratio)
        if self.rule == "importance":
            chances = windows.judged(partial(_chances, ratio), torch.float32)
            chance.scatter_(0, record.indices, to_device(chances, chance.device))
        else:
            chance.index_fill_(0, record.indices.index_select(0, to_device(ids_of(low), chance.device)), 1 - ratio)
        registry.state[_RATIO].fill_(ratio)

    def _note_missed(self, registry: SampleTable, record: EpochRecord) -> None:
        """Note which samples an epoch selected but did not train: it does not count as attended."""
        if record.asked is None:
            return
        missed = registry.selected.clone().index_fill_(0, record.asked.to(record.indices), False)
        if not registry.part.any(bool(missed.any())):
            return
        registry.add_column(_MISSED, dtype=torch.int32)
        registry.column(_MISSED).add_(missed)

    def _take_in(self, registry: SampleTable) -> None:
        """Note since when samples are there that were appended to the dataset: their attendance counts from then on."""
        known, num_samples = int(registry.state[_KNOWN]), registry.num_samples
        if num_samples > known:
            registry.add_column(_SINCE, dtype=torch.int32)
            registry.column(_SINCE)[known:] = registry.state[_EPOCHS].to(torch.int32) - 1
            registry.state[_KNOWN].fill_(num_samples)

    def _windows(self, registry: SampleTable, record: EpochRecord) -> Windows:
        """Return the recorded samples ``(m,)`` in their windows, by their scores."""
        if self.score == "grad_norm":
            return record.windows("grad_norm", self.window_batches)
        if registry.ranks_by_losses:
            return record.windows(None, self.window_batches)
        scores = registry.scores.index_select(0, record.indices)
        return WholeWindows(scores, record.window_lengths(self.window_batches))

    def _ratio(self, num_samples: int, num_trained: int, num_low: int, progress: float = 0.0) -> float:
        """Return the probability to leave or stay away, so that the next epoch keeps the target if there is one.

        The next epoch has ``n - ratio * (low + absent)`` samples. The ratio never goes more than half the way from the
        one that holds the target forever to 1, which would never let an absentee return.
        """
        if self.target_keep is None:
            return ratio_at("prune_ratio", self.prune_ratio, progress)
        target_keep = ratio_at("target_keep", self.target_keep, progress, **_BOUNDS)
        drop = 1 - target_keep
        share_low = max(num_low, 1) / num_trained
        steady = drop / (drop + target_keep * share_low)
        candidates = max(num_low + num_samples - num_trained, 1)
        return min(drop * num_samples / candidates, (1 + steady) / 2)

    def metrics(self, registry: SampleTable) -> dict[str, float | Tensor]:
        """Log the probability in force."""
        return {_RATIO: registry.state[_RATIO]}
