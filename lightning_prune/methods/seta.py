"""SeTa (Zhou et al., CVPR 2025): a random pre-drop, then a window that slides over groups of like loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_prune._checks import check_int, check_ratio, check_scores
from lightning_prune.callback import PruningCallback, is_annealing
from lightning_prune.methods._shared import count_nonfinite, draw
from lightning_prune.plan import Selection, ids_of, num_keep
from lightning_prune.rng import permutation, resolve_generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lightning_prune.registry import ScoreRegistry

_RESOLUTION = 256
"""Above twice this many distinct values, groups end only where one of so many equal counts or equal widths does."""


def kmeans_1d(values: Tensor, num_groups: int) -> Tensor:
    """Assign values to groups of least squared distance to the group's mean, ordered by rising mean.

    Optimal (not a local optimum, as Lloyd's algorithm may find) for up to 512 distinct values, by dynamic programming
    over the sorted values; above that, over 512 cells of equal count or equal width, which costs less than 1 % of the
    inertia. Deterministic; equal values share a group.

    Args:
        values: ``(n,)``, finite.
        num_groups: Number of groups, at least 1; reduced to the number of distinct values.

    Returns:
        Group ids ``(n,)``, int64, from 0 (lowest mean), on the device of ``values``. No group is empty.

    Raises:
        TypeError: If ``values`` is not a floating-point tensor.
        ValueError: If it is not ``(n,)`` with n >= 1 and finite, or ``num_groups`` is below 1.

    Example:
        >>> kmeans_1d(torch.tensor([5.0, 0.1, 0.2, 1.1, 1.0]), 3)
        tensor([2, 0, 0, 1, 1])
    """
    check_scores("values", values)
    check_int("num_groups", num_groups, low=1)
    if bad := count_nonfinite(values):
        raise ValueError(f"Expected `values` to be finite, but got {bad} that are not.")
    cuts = torch.tensor(_group_starts(values, num_groups)[1:], dtype=torch.float64, device=values.device)
    return torch.bucketize(values.double(), cuts, right=True)


def _group_starts(values: Tensor, num_groups: int) -> list[float]:
    """Return the least value of each group, ascending."""
    ordered: NDArray[np.float64] = np.sort((values if values.dtype == torch.float64 else values.float()).cpu().numpy())
    low, high = float(ordered[0]), float(ordered[-1])
    edges = ordered
    if len(ordered) > 2 * _RESOLUTION:
        by_count = ordered[:: -(-len(ordered) // _RESOLUTION)]
        edges = np.concatenate([by_count, np.linspace(low, high, _RESOLUTION, endpoint=False, dtype=ordered.dtype)])
    starts = np.unique(np.searchsorted(ordered, edges))  # first positions: equal values stay together
    counts = np.append(starts[1:], len(ordered)) - starts
    sums = np.add.reduceat(ordered, starts, dtype=np.float64) - counts * (low + (high - low) / 2)  # small numbers
    return ordered[starts[_best_cells(counts, sums, num_groups)]].tolist()  # type: ignore[no-any-return]


def _best_cells(counts: NDArray[np.int64], sums: NDArray[np.float64], num_groups: int) -> list[int]:
    """Return the first cell of each group in the best partition of cells into consecutive groups.

    The inertia is the sum of squares less ``sum(group)^2 / count(group)``, so it is the latter that is maximised.
    """
    cells = len(counts)
    total, mass = np.append(0.0, sums.cumsum()), np.append(0, counts.cumsum())
    width = np.maximum(mass[1:, None] - mass[None, :-1], 1)
    gain = (total[1:, None] - total[None, :-1]) ** 2 / width  # (last cell, first cell)
    gain[np.triu_indices(cells, 1)] = -np.inf
    best, choices = gain[:, 0], []
    for _ in range(1, min(num_groups, cells)):
        options = gain[:, 1:] + best[:-1]
        choices.append(options.argmax(1) + 1)
        best = options.max(1)
    starts, last = [], cells - 1
    for choice in reversed(choices):
        starts.append(int(choice[last]))
        last = starts[-1] - 1
    return [0, *reversed(starts)]


def seta_window(epoch: int, num_groups: int, window_scale: float) -> range:
    """Return the groups that ``epoch`` trains: all in epoch 0, then a window that starts at ``epoch mod positions``.

    Its width is ``num_groups * window_scale`` rounded half to even, as in the published code: 4.5 groups become 4.

    Example:
        >>> [list(seta_window(epoch, 5, 0.6)) for epoch in range(4)]
        [[0, 1, 2, 3, 4], [1, 2, 3], [2, 3, 4], [0, 1, 2]]
    """
    width = max(1, round(num_groups * window_scale))
    start = epoch % (num_groups - width + 1)
    return range(start, start + width) if epoch > 0 else range(num_groups)


def seta(
    scores: Tensor,
    epoch: int,
    prune_ratio: float,
    num_groups: int,
    window_scale: float,
    *,
    generator: torch.Generator | None = None,
) -> Selection:
    """Drop a random share ``prune_ratio``, group the rest by score, keep the groups of a window from easy to hard.

    Biased by design: a sample is left out with certainty while the window is elsewhere, and nothing is re-weighted.
    Non-finite scores (NaN: never seen) are kept and not grouped; if all are, only the random share is dropped.

    Args:
        scores: Losses ``(n,)``.
        epoch: Number of epochs pruned before this one; it moves the window, see :func:`seta_window`.
        prune_ratio: Share dropped at random beforehand, in [0, 1).
        num_groups: Number of groups k, at least 1; fewer where there are fewer distinct scores.
        window_scale: Share of the groups in the window, in (0, 1].
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ascending ids on the device of ``scores``, unweighted.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor or an int is not one.
        ValueError: If ``scores`` is not ``(n,)`` with n >= 1, or an argument is out of range.

    Note:
        Deviations from the published code: groups are optimal instead of scikit-learn's k-means (whose result changed
        with its versions); fewer distinct scores than groups give fewer groups instead of empty ones; equal scores are
        split at random into groups of equal size, whatever the order of the ids.

    Example:
        >>> seta(torch.tensor([0.1, 9.0, 1.0, 0.2, 1.1, 9.1]), 1, 0.0, 3, 0.67).indices.tolist()
        [1, 2, 4, 5]
    """
    check_scores("scores", scores)
    check_int("epoch", epoch, low=0)
    check_ratio("prune_ratio", prune_ratio)
    check_int("num_groups", num_groups, low=1)
    check_ratio("window_scale", window_scale, closed_low=False, closed_high=True)
    generator = resolve_generator(generator)
    num_unknown = count_nonfinite(scores)
    if num_unknown == len(scores):
        ids = torch.arange(len(scores), device=scores.device)
        return Selection(draw(ids, num_keep(len(ids), 1 - prune_ratio), generator).sort().values)
    known = scores.isfinite() if num_unknown else None
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device) if known is None else known.clone()
    if prune_ratio > 0:
        drawn = permutation(len(scores) - num_unknown, generator)[num_keep(len(scores) - num_unknown, 1 - prune_ratio) :]
        drawn = drawn.to(scores.device)
        keep.index_fill_(0, drawn.long() if known is None else ids_of(known).index_select(0, drawn), False)
    if epoch > 0:
        keep &= _in_window(scores, keep, epoch, num_groups, window_scale, generator)
    return Selection.from_mask(keep if known is None else keep | ~known)


def _in_window(
    scores: Tensor, among: Tensor, epoch: int, num_groups: int, window_scale: float, generator: torch.Generator
) -> Tensor:
    """Return where scores ``(n,)`` lie in the groups of the window; the groups are those of ``scores[among]``."""
    ids = ids_of(among)
    starts = _group_starts(scores.index_select(0, ids), num_groups)
    if len(starts) == 1:  # equal scores: groups of equal size, at random
        groups = min(num_groups, len(ids))
        window = seta_window(epoch, groups, window_scale)
        size = window.stop * len(ids) // groups - window.start * len(ids) // groups
        return torch.zeros_like(among).index_fill_(0, draw(ids, size, generator), True)
    window = seta_window(epoch, len(starts), window_scale)
    inside = scores >= starts[window.start]
    return inside if window.stop == len(starts) else inside & (scores < starts[window.stop])


class SeTa(PruningCallback):
    """Slide a window from easy to hard groups of samples; ``prune_ratio`` is the share dropped at random beforehand.

    Each epoch drops ``prune_ratio`` of all samples at random, splits the rest into ``num_groups`` groups of like loss,
    and trains the window's groups, unweighted. How much that saves depends on the groups' sizes: the hardest one may
    hold 1 % of the samples. The last epochs drop only the random share ("partial annealing"), as does the first.

    Args:
        prune_ratio: Share of all samples dropped at random in each epoch, in [0, 1).
        num_groups: Number of groups of like loss, at least 1.
        window_scale: Share of the groups that are trained, in (0, 1]; 5 groups * 0.9 = 4.5 are rounded to the even 4.
        anneal_ratio: Share of the run after which all groups are trained, in [0, 1]. 1: the window slides to the end.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything; the window's position counts from their end.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Zhou et al., "Scale Efficient Training for Large Datasets" (SeTa), CVPR 2025; window and annealing as in the
        published code.

    Example:
        >>> SeTa()
        SeTa(prune_ratio=0.1, num_groups=5, window_scale=0.9, anneal_ratio=0.875)
    """

    def __init__(
        self,
        prune_ratio: float = 0.1,
        num_groups: int = 5,
        window_scale: float = 0.9,
        anneal_ratio: float = 0.875,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_ratio("prune_ratio", prune_ratio)
        check_int("num_groups", num_groups, low=1)
        check_ratio("window_scale", window_scale, closed_low=False, closed_high=True)
        check_ratio("anneal_ratio", anneal_ratio, closed_high=True)
        self.prune_ratio = prune_ratio
        self.num_groups = num_groups
        self.window_scale = window_scale
        self.anneal_ratio = anneal_ratio

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        """Drop the random share, then all groups but the window's; in the annealing phase, only the random share."""
        turn = 0 if is_annealing(registry, epoch, self.anneal_ratio) else epoch - self.warmup_epochs
        return seta(
            registry.scores, turn, self.prune_ratio, self.num_groups, self.window_scale, generator=generator
        )
