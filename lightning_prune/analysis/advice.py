"""Which method suits a data set, by what a short probe found: a rule without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.method import arguments_of, ratio_setting
from lightning_prune.methods.infobatch import InfoBatch
from lightning_prune.methods.orderdp import OrderDP
from lightning_prune.methods.random import RandomPruning
from lightning_prune.methods.repb import RePB
from lightning_prune.methods.seta import SeTa

MIN_EPOCHS = 3
"""Epochs of a probe: of the last two the rankings are compared, and in the first all is new."""
NOISY = 0.1
"""Share of suspected labels from which an aligned method is named."""
LEAST_STABILITY = 0.2
"""Rank correlation of two epochs' losses below which a loss says nothing of the next epoch's."""
WELL_WITHIN = 0.8
"""Share of InfoBatch's reach up to which it is named."""
EASY = 0.25
"""A sample is learnt when its loss is below that share of the first epoch's mean."""


@final
@dataclass(frozen=True)
class Findings:
    """What a probe found.

    Attributes:
        max_epochs: Epochs of the full run.
        probe_epochs: Epochs of the probe.
        easy: Share of the samples that are learnt at its end.
        below_mean: Share of the samples whose loss is below the mean.
        stability: Spearman's correlation of the last two epochs' losses.
        noise: Share of the labels that are suspected to be wrong; None: the training step passes no logits and targets.
        imbalance: Samples of the largest class, over those of the smallest; None: as for ``noise``.
    """

    max_epochs: int
    probe_epochs: int
    easy: float
    below_mean: float
    stability: float
    noise: float | None = None
    imbalance: float | None = None


@final
@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes:
        callback: ``class_path`` and ``init_args`` of the callback; None: do not prune, train fewer epochs of all data.
        reasons: Why, one sentence each.
        reaches: The most that each method can save in the full run, by name.
    """

    callback: dict[str, Any] | None
    reasons: list[str]
    reaches: dict[str, float]


def spearman(first: Tensor, second: Tensor) -> float:
    """Return the rank correlation of values ``(n,)``, those that are not finite in either left out; 0 of constants.

    Example:
        >>> round(spearman(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.3])), 6)
        1.0
    """
    both = first.isfinite() & second.isfinite()
    if int(both.sum()) < 2:
        return 0.0
    ranks = torch.stack([_ranks(first[both]), _ranks(second[both])])
    ranks -= ranks.mean(1, keepdim=True)
    norms = ranks.norm(dim=1)
    return float((ranks[0] @ ranks[1]) / (norms[0] * norms[1])) if bool((norms > 0).all()) else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Return ranks ``(n,)``, float64; of ties, their mean."""
    place: Tensor
    counts: Tensor
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    means = counts.cumsum(0).double() - (counts - 1) / 2
    return means.index_select(0, place)


def suspected(confidences: Tensor, others: Tensor, other_classes: Tensor, targets: Tensor) -> float:
    """Return the share of labels that are probably wrong: the model is as sure of another class as of that class's own.

    The bar of a class is the mean probability that samples labelled with it give it, as in confident learning.

    Args:
        confidences: Probability ``(n,)`` of each sample's given class.
        others: Largest probability ``(n,)`` of another class.
        other_classes: That class ``(n,)``, int64.
        targets: The given class ``(n,)``, int64.
    """
    num_classes = int(torch.maximum(targets.max(), other_classes.max())) + 1
    sums = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, targets, confidences.double())
    bars = sums / targets.bincount(minlength=num_classes).clamp(min=1)
    return float(((others.double() >= bars[other_classes]) & (others > confidences)).double().mean())


def find(
    losses: Sequence[Tensor], max_epochs: int, noise: float | None = None, targets: Tensor | None = None
) -> Findings:
    """Return the findings of a probe.

    Args:
        losses: Losses ``(n,)`` of each epoch of the probe, at least three; NaN: none.
        max_epochs: Epochs of the full run.
        noise: Share of the labels that are suspected.
        targets: Classes ``(n,)``, int64.

    Raises:
        ValueError: If there are too few epochs.
    """
    if len(losses) < MIN_EPOCHS:
        raise ValueError(f"Expected a probe of at least {MIN_EPOCHS} epochs, but got {len(losses)}.")
    first, last = losses[0], losses[-1]
    known = last[last.isfinite()].double()
    counts = None if targets is None else targets.bincount()
    return Findings(
        max_epochs,
        len(losses),
        easy=float((known < EASY * float(first.nanmean())).double().mean()),
        below_mean=float((known < known.mean()).double().mean()),
        stability=spearman(losses[-2], last),
        noise=noise,
        imbalance=None if counts is None else float(counts.max() / counts[counts > 0].min()),
    )


def advise(findings: Findings, save: float) -> Advice:
    """Name a method that saves a share of the run, or say that the epochs should be fewer instead.

    1. Losses that do not tell of the next epoch's: no pruning, as a choice by them is a random one. All data for fewer
       epochs cost as much, and need no method.
    2. Labels suspected to be wrong: AlignPrune without rescaling; rules that keep high losses keep the wrong labels.
    3. A saving of at most 80 % of InfoBatch's reach: InfoBatch, whose gradient is unbiased, and which has nothing to
       tune. Closer to its reach, the few easy samples that it keeps weigh many times as much (docs/cifar.md, at 50 %).
    4. Else OrderDP, which leaves out exactly what it is asked for; RePB, which re-weighs, if classes are unequal.

    Where fewer samples are learnt than are to be left out, accuracy will be lost; the reasons say so. All data for
    fewer epochs lose as much or more (docs/experiments.md).

    Args:
        findings: What a probe found.
        save: Share of the sample-steps of the full run to save, in (0, 1).

    Raises:
        ValueError: If ``save`` is out of range, or no method can save that much in this run.

    Example:
        >>> found = Findings(40, 4, easy=0.7, below_mean=0.7, stability=0.8, noise=0.0)
        >>> advise(found, 0.3).callback["init_args"]["base"]["class_path"]
        'InfoBatch'
    """
    check_reach(save, findings.max_epochs)
    reaches = _reaches(findings.max_epochs, findings.below_mean)
    if findings.stability < LEAST_STABILITY:
        reason = (
            f"The losses of two epochs have a rank correlation of {findings.stability:.2f}, below {LEAST_STABILITY}: "
            "the easy samples of one epoch are not those of the next, so no method can choose by them. All data "
            "for fewer epochs cost as much."
        )
        mend = "If the model does not learn, mend that first, for example by a lower learning rate."
        return Advice(None, [reason, mend], reaches)
    if findings.noise is not None and findings.noise >= NOISY:
        window = max(4, min(10, findings.max_epochs // 4))
        later = 1 - window / findings.max_epochs
        base = "InfoBatch" if save <= WELL_WITHIN * reaches["InfoBatch"] * later else "OrderDP"
        wrapped = {"class_path": base}
        arguments = {"base": wrapped, "window": window, "rescale": False}
        reasons = [
            f"{findings.noise:.0%} of the labels are suspected to be wrong ({NOISY:.0%} or more count as noise). Rules "
            "that keep high losses keep them; AlignPrune leaves them out, and `rescale: false` gives those that are "
            "left no extra weight.",
            f"Its base is {base}, " + ("which is unbiased." if base == "InfoBatch" else "which can save that much."),
        ]
        return Advice(_budget(save, {"class_path": "AlignPrune", "init_args": arguments}), reasons, reaches)
    stable = f"rankings are stable (correlation {findings.stability:.2f})"
    learnt = f"{findings.easy:.0%} of the samples are learnt at the probe's end"
    if findings.easy >= save:
        reasons = [f"{learnt}, more than the {save:.0%} to be left out, and {stable}."]
    else:
        reasons = [
            f"Only {learnt}, and {save:.0%} are to be left out: accuracy will be lost. In our tables, all data for "
            f"{1 - save:.0%} of the epochs lost as much or more; {stable}."
        ]
    if save <= WELL_WITHIN * reaches["InfoBatch"]:
        reasons.append(
            f"InfoBatch can save up to {reaches['InfoBatch']:.0%} here, its gradient is unbiased, and it has nothing "
            "to tune."
        )
        return Advice(_budget(save, {"class_path": "InfoBatch"}), reasons, reaches)
    reasons.append(
        f"InfoBatch saves at most {reaches['InfoBatch']:.0%} here; close to that, the few easy samples that it keeps "
        "weigh many times as much."
    )
    if findings.imbalance is not None and findings.imbalance >= 10 and save <= reaches["RePB"]:
        reasons.append(
            f"The largest class has {findings.imbalance:.0f} times the samples of the smallest: RePB re-weighs."
        )
        return Advice(_budget(save, {"class_path": "RePB"}), reasons, reaches)
    reasons.append(_ORDERDP)
    return Advice(_budget(save, {"class_path": "OrderDP"}), reasons, reaches)


_ORDERDP = "OrderDP leaves out exactly what it is asked for, and lost least at high savings in our tables."


def _budget(save: float, base: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": "Budget", "init_args": {"save": save, "base": base}}


def check_reach(save: float, max_epochs: int) -> None:
    """Refuse a share that no method can save in a run, whatever its losses are.

    Args:
        save: Share of the sample-steps to save.
        max_epochs: Epochs of the run.

    Raises:
        ValueError: If it is out of range, or more than any method can save.
    """
    check_ratio("save", save, closed_low=False)
    if save > (most := max(_reaches(max_epochs, 1.0).values())):
        raise ValueError(
            f"Expected `save` that a method can reach in {max_epochs} epochs, at most {most:.3f}, but got {save:g}."
        )


def _reaches(max_epochs: int, below_mean: float) -> dict[str, float]:
    """Return the most that each method can save in a run, where such a share of the losses is below the mean."""
    found = {}
    for method in (InfoBatch, SeTa, RePB, OrderDP, RandomPruning):
        setting = ratio_setting(method)
        assert setting is not None  # noqa: S101  (narrowing: each says so)
        share = below_mean if method is InfoBatch else 1.0
        found[method.__name__] = share * setting.most * setting.prunable(max_epochs, arguments_of(method))
    return found
