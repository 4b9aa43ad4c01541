"""From scores to a coreset: the top, the middle, and any rule class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_int, check_scores
from lightning_prune.core.plan import num_keep
from lightning_prune.scoring._inputs import check_targets

_MOST_NAMED = 10
"""Classes that a warning names."""


def select_top(
    scores: Tensor, k: int, keep: Literal["high", "low"] = "high", *, generator: torch.Generator | None = None
) -> Tensor:
    """Keep the ``k`` largest or smallest scores.

    Args:
        scores: ``(n,)``, without NaN; infinite is allowed.
        k: Samples to keep, in [1, n].
        keep: The end to keep.
        generator: CPU generator that orders ties at random. None: the lower id goes first.

    Returns:
        Ids ``(k,)``, int64, ascending.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor.
        ValueError: If a score is NaN, or an argument is out of range.

    Example:
        >>> select_top(torch.tensor([3.0, 9.0, 3.0, 1.0]), 2).tolist()
        [0, 1]
    """
    check_selectable(scores, k)
    check_choice("keep", keep, ("high", "low"))
    if generator is None:
        order = scores.argsort(descending=keep == "high", stable=True)
    else:
        shuffled = torch.randperm(len(scores), generator=generator).to(scores.device)
        order = shuffled[scores[shuffled].argsort(descending=keep == "high", stable=True)]
    return order[:k].sort().values


def select_middle(scores: Tensor, keep_ratio: float) -> Tensor:
    """Keep the share ``keep_ratio`` around the median score, as Moderate does with distances.

    Args:
        scores: ``(n,)``, without NaN.
        keep_ratio: Share to keep, in (0, 1], rounded by :func:`num_keep`.

    Returns:
        Ids ``(k,)``, int64, ascending. Ties are ordered by id.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor.
        ValueError: If a score is NaN, or ``keep_ratio`` is out of range.

    Note:
        The published code rounds both ends of the middle, and may keep one sample more or less.

    Example:
        >>> select_middle(torch.tensor([5.0, 1.0, 3.0, 9.0]), 0.5).tolist()
        [0, 2]
    """
    check_scores("scores", scores)
    k = num_keep(len(scores), keep_ratio)
    check_selectable(scores, k)
    start = (len(scores) - k) // 2
    return scores.argsort(stable=True)[start : start + k].sort().values


def select_per_class(targets: Tensor, k: int, rule: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply a rule inside every class, with a budget in proportion to its size: the class-balanced form of any rule.

    Args:
        targets: Class ids ``(n,)``.
        k: Samples to keep in all, in [1, n].
        rule: ``rule(ids, budget)`` returns ``budget`` positions in ``ids``, the samples of one class, ascending.

    Returns:
        Ids ``(k,)``, int64, ascending.

    Example:
        >>> scores, targets = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])
        >>> select_per_class(targets, 2, lambda ids, budget: select_top(scores[ids], budget)).tolist()
        [1, 3]
    """
    targets = check_targets(targets, rows=len(targets))
    kept = []
    for label, budget in class_budgets(targets, k).items():
        ids = (targets == label).nonzero().squeeze(1)
        if budget:
            kept.append(ids[rule(ids, budget)])
    return torch.cat(kept).sort().values


def class_budgets(targets: Tensor, k: int) -> dict[int, int]:
    """Split ``k`` over the classes in proportion to their sizes; the largest remainders get what rounding leaves.

    A class that would get none gets one sample, of the class that has the most; where ``k`` is less than the number of
    classes, a warning names those that get none.

    Args:
        targets: Class ids ``(n,)``.
        k: Samples to keep in all, in [1, n].

    Returns:
        Samples to keep by class id; the sum is ``k``, and none is more than the class has.

    Example:
        >>> class_budgets(torch.tensor([0, 0, 0, 0, 0, 5, 5]), 3)
        {0: 2, 5: 1}
    """
    check_int("k", k, low=1, high=len(targets))
    labels, sizes = torch.unique(targets, return_counts=True)
    floors, remainders = sizes * k // len(targets), sizes * k % len(targets)
    extra = remainders.argsort(descending=True, stable=True)[: k - int(floors.sum())]
    floors[extra] += 1
    for _ in range(min(k, len(labels)) - int((floors > 0).sum())):
        floors[floors.argmax()] -= 1
        floors[floors.argmin()] += 1  # the first that has none
    if missing := labels[floors == 0].tolist():
        names = ", ".join(map(str, missing[:_MOST_NAMED])) + (", ..." if len(missing) > _MOST_NAMED else "")
        rank_zero_warn(
            f"{k} samples are kept of {len(labels)} classes: {len(missing)} of them have none ({names}). Lower "
            "`prune_ratio` to keep at least one of each."
        )
    return dict(zip(labels.tolist(), floors.tolist(), strict=True))


def rank_scores(order: Tensor, num_samples: int) -> Tensor:
    """Turn a greedy order of ids ``(k,)`` into scores ``(n,)``: k for the first choice, 1 for the last, 0 for the rest.

    So the top k' <= k of them are the greedy choice of k'.

    Example:
        >>> rank_scores(torch.tensor([3, 1]), 4)
        tensor([0., 1., 0., 2.])
    """
    scores = torch.zeros(num_samples, dtype=torch.float32, device=order.device)
    scores[order] = torch.arange(len(order), 0, -1, device=order.device, dtype=scores.dtype)
    return scores


def check_selectable(scores: Tensor, k: int) -> None:
    """Raise unless ``k`` of these scores can be selected."""
    check_scores("scores", scores)
    check_int("k", k, low=1, high=len(scores))
    if missing := int(scores.isnan().sum()):
        raise ValueError(
            f"Expected `scores` without NaN, but got {missing} of {len(scores)}: these samples were never scored. "
            "Score with `drop_last=False` and over more epochs."
        )
