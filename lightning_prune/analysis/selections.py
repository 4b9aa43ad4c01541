"""What selections have in common, whom they use, and what is in them. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.checks import check_int, check_scores

PERCENTILES = (5, 25, 50, 75, 95)


def jaccard(first: Tensor, second: Tensor) -> float:
    """Return the Jaccard overlap of two selections: ``|A and B| / |A or B|``, 1 for equal ones, 0 for disjoint ones.

    Of consecutive epochs it tells how stable a method's choice is (OrderDP, Eq. 40 and Table 8). Two independent
    uniform draws of a share k of all samples overlap by ``k / (2 - k)`` on average.

    Args:
        first: Sample ids ``(k,)``, int64, without repeats.
        second: Sample ids ``(m,)``, likewise.

    Raises:
        TypeError: If a selection is not an int64 tensor.
        ValueError: If one is not one-dimensional, or both are empty.

    Example:
        >>> jaccard(torch.tensor([0, 1, 2]), torch.tensor([2, 1, 5]))
        0.5
    """
    _check_ids("first", first)
    _check_ids("second", second)
    if len(first) + len(second) == 0:
        raise ValueError("Expected at least one selected sample, but got two empty selections.")
    first, second = first.cpu(), second.cpu()
    inside = torch.zeros(1 + int(torch.cat([first, second]).max()), dtype=torch.bool)
    inside[first] = True
    common = int(inside[second].count_nonzero())
    return common / (len(first) + len(second) - common)


def usage_histogram(counts: Tensor, num_epochs: int) -> Tensor:
    """Return how many samples were selected in exactly 0, 1, ..., ``num_epochs`` epochs (OrderDP, Figures 9-11).

    Args:
        counts: Epochs in which each sample was selected ``(n,)``, integers; ``registry.counts``.
        num_epochs: Number of epochs of the run so far.

    Returns:
        ``(num_epochs + 1,)``, int64, summing to n, on the CPU.

    Raises:
        TypeError: If ``counts`` is not an integer tensor.
        ValueError: If it is not ``(n,)`` within [0, ``num_epochs``].

    Example:
        >>> usage_histogram(torch.tensor([2, 0, 2, 1]), 3)
        tensor([1, 1, 2, 0])
    """
    check_int("num_epochs", num_epochs, low=0)
    if counts.is_floating_point() or counts.dtype == torch.bool:
        raise TypeError(f"Expected `counts` to be an integer tensor, but got {counts.dtype}.")
    counts = counts.cpu()
    if counts.dim() != 1:
        raise ValueError(f"Expected `counts` of shape (n,), but got {tuple(counts.shape)}.")
    if len(counts) and not 0 <= int(counts.min()) <= int(counts.max()) <= num_epochs:
        raise ValueError(
            f"Expected `counts` in [0, {num_epochs}], by `num_epochs={num_epochs}`, but got counts in "
            f"[{int(counts.min())}, {int(counts.max())}]."
        )
    return torch.bincount(counts, minlength=num_epochs + 1)


def class_kept_share(indices: Tensor, targets: Tensor, num_classes: int | None = None) -> Tensor:
    """Return the share of each class's samples that a selection keeps.

    Args:
        indices: Sample ids ``(k,)``, int64.
        targets: Class of every sample ``(n,)``, int64.
        num_classes: C. None: the highest class id plus one.

    Returns:
        ``(C,)``, float64, on the CPU; NaN for a class without samples.

    Raises:
        TypeError: If ``indices`` or ``targets`` is not an int64 tensor.
        ValueError: If a tensor is not one-dimensional.

    Example:
        >>> class_kept_share(torch.tensor([0, 3]), torch.tensor([0, 0, 1, 1, 1, 1]))
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    _check_ids("indices", indices)
    _check_ids("targets", targets)
    targets = targets.cpu()
    totals = torch.bincount(targets, minlength=num_classes or 0)
    return torch.bincount(targets[indices.cpu()], minlength=len(totals)) / totals.double()


def noise_ratio(indices: Tensor, flipped: Tensor) -> float:
    """Return the share of mislabelled samples in a selection (AlignPrune, B.2.8).

    Args:
        indices: Sample ids ``(k,)``, int64, at least one.
        flipped: Which samples are mislabelled ``(n,)``, bool: ``targets != clean_targets``, or the mask of
            :func:`lightning_prune.data.inject_label_noise`.

    Raises:
        TypeError: If ``indices`` is not int64 or ``flipped`` is not bool.
        ValueError: If nothing is selected.

    Example:
        >>> noise_ratio(torch.tensor([0, 1, 3, 4]), torch.tensor([True, False, True, False, False]))
        0.25
    """
    _check_ids("indices", indices)
    _check_mask("flipped", flipped)
    if len(indices) == 0:
        raise ValueError("Expected at least one selected sample, but got an empty selection.")
    return float(flipped.cpu()[indices.cpu()].double().mean())


def hard_clean(losses: Tensor, flipped: Tensor, k: int) -> Tensor:
    """Return the rightly labelled samples that are hardest to learn: of the highest mean loss (AlignPrune, B.2.7).

    Args:
        losses: Losses ``(epochs, n)`` over a run; those that are not finite do not count.
        flipped: Which samples are mislabelled ``(n,)``, bool.
        k: How many samples, at most as many as are rightly labelled.

    Returns:
        Ids ``(k,)``, int64, from the highest mean loss down, on the CPU.

    Raises:
        TypeError: If ``flipped`` is not bool.
        ValueError: If shapes do not fit, or ``k`` is out of range.

    Example:
        >>> losses = torch.tensor([[3.0, 9.0, 1.0], [2.0, 9.0, 4.0]])
        >>> hard_clean(losses, torch.tensor([False, True, False]), 2)
        tensor([0, 2])
    """
    _check_mask("flipped", flipped)
    if losses.dim() != 2 or flipped.shape != losses.shape[1:]:
        raise ValueError(
            f"Expected `losses` (epochs, n) and `flipped` (n,), but got {tuple(losses.shape)} and "
            f"{tuple(flipped.shape)}."
        )
    clean = (~flipped).nonzero().squeeze(1).cpu()
    check_int("k", k, low=1, high=len(clean))
    means = losses.cpu()[:, clean].double()
    means = means.where(means.isfinite(), torch.nan).nanmean(0).nan_to_num(nan=-torch.inf)
    return clean[means.argsort(descending=True, stable=True)[:k]]


def separation(scores: Tensor, group: Tensor, other: Tensor) -> float:
    """Return the chance that a sample of one group scores above one of another: 0.5 if scores cannot tell them apart.

    It is the area under the ROC curve; equal scores count one half.

    Args:
        scores: Scores ``(n,)``; samples whose score is NaN are left out.
        group: Which samples are of the one group ``(n,)``, bool.
        other: Which samples are of the other ``(n,)``, bool.

    Returns:
        The chance, in [0, 1]; NaN if a group has no score.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor, or a group is not bool.

    Example:
        >>> scores = torch.tensor([0.9, 0.4, 0.5, 0.1])
        >>> mislabelled = torch.tensor([False, False, True, True])
        >>> separation(scores, ~mislabelled, mislabelled)
        0.75
    """
    check_scores("scores", scores)
    _check_mask("group", group)
    _check_mask("other", other)
    values = scores.detach().cpu().double().numpy()
    upper, lower = (values[mask.cpu().numpy() & ~np.isnan(values)] for mask in (group, other))
    if len(upper) == 0 or len(lower) == 0:
        return float("nan")
    lower.sort()
    below = np.searchsorted(lower, upper, "left") + np.searchsorted(lower, upper, "right")
    return float(below.mean() / (2 * len(lower)))


def score_summary(scores: Tensor, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Return the mean and percentiles of the finite scores, all NaN if there is none.

    Args:
        scores: Scores ``(n,)``, for example ``registry.losses``; not finite: never seen, or broken.
        percentiles: Which, in [0, 100]; between two scores they are interpolated linearly.

    Returns:
        ``{"mean": ..., "p5": ..., ...}``.

    Example:
        >>> score_summary(torch.tensor([1.0, 2.0, 6.0, torch.nan]), (50,))
        {'mean': 3.0, 'p50': 2.0}
    """
    check_scores("scores", scores)
    values = scores.detach().float().cpu().numpy()
    values = values[np.isfinite(values)]
    names = [f"p{percentile:g}" for percentile in percentiles]
    if len(values) == 0:
        return dict.fromkeys(["mean", *names], float("nan"))
    found = np.percentile(values, percentiles)
    return {"mean": float(values.mean(dtype=np.float64)), **dict(zip(names, map(float, found), strict=True))}


def _check_ids(name: str, ids: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"Expected `{name}` to be an int64 tensor, but got {got}.")
    if ids.dim() != 1:
        raise ValueError(f"Expected `{name}` to be one-dimensional, but got shape {tuple(ids.shape)}.")


def _check_mask(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"Expected `{name}` to be a bool tensor, but got {mask.dtype}.")
