"""SeTa (Zhou et al., CVPR 2025): a random share of the samples, then a window that slides over groups of equal loss."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import count_true, ids_of, is_finite, sort_rows, to_device
from lightning_prune.core.checks import check_int, check_ratio, check_scores
from lightning_prune.core.part import Part
from lightning_prune.core.plan import Selection, num_keep, random_submask
from lightning_prune.core.ratio import Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.rng import resolve_generator
from lightning_prune.core.stats import count_nonfinite
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._shared import is_annealing
from lightning_prune.methods.random import random_subset
from lightning_prune.trainer.callback import PruningCallback

_CELLS = 128
"""Cells of equal count, and as many of equal width, among whose borders the best grouping is searched exactly."""
_SKETCH = 1 << 20
"""Values whose groups stand for those of all, where several processes share these."""
_MAX_ITERATIONS = 10
"""Bound on Lloyd's refinement, which changes next to nothing from there."""


def kmeans_1d(values: Tensor, num_groups: int) -> Tensor:
    """Group values by one-dimensional k-means; equal values are never parted.

    The best grouping into intervals is found exactly, by dynamic programming, for up to 256 values; for more, among
    the borders of 256 cells, and refined by Lloyd's iterations on all values. Deterministic, and the same for
    every order of the values.

    Args:
        values: Finite numbers ``(n,)``.
        num_groups: Number of groups k, at least 1. With fewer distinct values there are fewer groups.

    Returns:
        Group of each value ``(n,)``, int64, in [0, k), numbered by rising mean, none left out; on the device of
        ``values``.

    Raises:
        TypeError: If ``values`` is not a floating-point tensor.
        ValueError: If ``values`` is not ``(n,)`` with n >= 1 or not finite, or ``num_groups < 1``.

    Example:
        >>> kmeans_1d(torch.tensor([5.0, 0.1, 5.2, 0.2, 1.0]), 3)
        tensor([2, 0, 2, 0, 1])
    """
    check_scores("values", values)
    check_int("num_groups", num_groups, low=1)
    if count_nonfinite(values):
        raise ValueError("Expected `values` to be finite, but got NaN or infinite values.")
    return torch.bucketize(values, _group_starts(values, num_groups), right=True)


def _group_starts(values: Tensor, num_groups: int) -> Tensor:
    """Return the least value ``(k - 1,)`` of each group but the first, rising."""
    values = sort_rows(values if values.dtype in (torch.float32, torch.float64) else values.float())
    sums = torch.empty(len(values) + 1, dtype=torch.float64, device=values.device)
    sums[0] = 0
    sums[1:].copy_(values).sub_(values[len(values) // 2]).cumsum_(0)
    cuts = _best_cuts(_candidate_cuts(values), sums, num_groups)
    for _ in range(_MAX_ITERATIONS):
        means = sums[cuts].diff() / cuts.diff() + values[len(values) // 2]
        moved = cuts.clone()
        moved[1:-1] = torch.searchsorted(values, ((means[1:] + means[:-1]) / 2).to(values.dtype))
        if torch.equal(moved, cuts) or bool((moved.diff() <= 0).any()):
            break
        cuts = moved
    return values[cuts[1:-1]]


def _candidate_cuts(values: Tensor) -> Tensor:
    """Return positions in rising ``values`` at which a group may start, and the end; never amid equal values."""
    n = len(values)
    borders = values
    if n > 2 * _CELLS:
        widths = torch.linspace(0, 1, _CELLS, dtype=values.dtype, device=values.device)
        borders = torch.cat([values[:: n // _CELLS], values[0] + (values[-1] - values[0]) * widths])
    cuts = torch.searchsorted(values, borders)
    cuts = torch.cat([cuts, cuts.new_tensor([0, n])]).sort().values
    return cuts[cuts.diff(prepend=cuts.new_tensor([-1])) > 0]


def _best_cuts(cuts: Tensor, sums: Tensor, num_groups: int) -> Tensor:
    """Return those ``(k + 1,)`` of the cuts that part the values with the least squared distance to the group means.

    A group from cut i to j costs its values' squares minus ``(sum of values)^2 / count``; the squares do not matter.
    """
    counts, totals = cuts.double(), sums[cuts]
    size = counts[None] - counts[:, None]
    cost = torch.where(size > 0, -((totals[None] - totals[:, None]) ** 2) / size, torch.inf)
    best, came_from = cost[0], []
    for _ in range(min(num_groups, len(cuts) - 1) - 1):
        best, previous = (best[:, None] + cost).min(0)
        came_from.append(previous)
    path = [len(cuts) - 1]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return cuts[torch.tensor([0, *reversed(path)], device=cuts.device)]


def _window(epoch: int, num_groups: int, window_scale: float) -> tuple[int, int]:
    """Return the first group of an epoch's window and the one after its last."""
    width = max(1, round(num_groups * window_scale))  # half to even: 4 of 5 groups at 0.9, as published
    if epoch == 0:
        return 0, num_groups
    start = epoch % (num_groups - width + 1)
    return start, start + width


def seta(
    scores: Tensor,
    epoch: int,
    prune_ratio: float,
    num_groups: int,
    window_scale: float,
    *,
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> Selection:
    """Drop a random share, group the rest by score, and keep the groups in a window that slides from epoch to epoch.

    The random subset A has ``(1 - prune_ratio) n`` samples. Its scores fall into ``num_groups`` groups of rising mean
    (:func:`kmeans_1d`), of which ``round(num_groups * window_scale)`` (half to even) neighbours are kept, from group
    ``epoch mod (number of window positions)`` on; epoch 0 keeps all groups. Nothing is re-weighted, so the gradient is
    biased towards the window. Samples of A with a non-finite score (NaN: never seen) are kept and not grouped.

    Args:
        scores: Losses ``(n,)``.
        epoch: Number of pruning epochs before this one, from 0.
        prune_ratio: Share of all samples dropped at random, in [0, 1).
        num_groups: Number of groups, at least 1; fewer where there are fewer distinct scores.
        window_scale: Share of the groups in the window, in (0, 1]; at least one group is.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.
        part: Which part of the scores these are, where several processes share them; None: all. Groups are then those
            of a million scores, evenly spaced by id; of all, where there are no more.

    Returns:
        Ascending ids on the device of ``scores``, unweighted.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor.
        ValueError: If ``scores`` is not ``(n,)`` with n >= 1, or an argument is out of range.

    Note:
        The paper's window slides from easy to hard; as in the published code, it stands at position 1 in epoch 1.
        That code fails or depends on the order where groups are empty; they do not count here. Scores that are all
        equal make groups of equal size at random.

    Example:
        >>> scores = torch.tensor([0.1, 0.1, 1.0, 1.0, 5.0, 5.0])
        >>> [seta(scores, epoch, 0.0, 3, 0.7).indices.tolist() for epoch in (0, 1, 2)]
        [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [0, 1, 2, 3]]
    """
    check_scores("scores", scores)
    check_int("epoch", epoch, low=0)
    check_ratio("prune_ratio", prune_ratio)
    check_int("num_groups", num_groups, low=1)
    check_ratio("window_scale", window_scale, closed_low=False, closed_high=True)
    generator = resolve_generator(generator)
    part = Part.whole(len(scores)) if part is None else part
    drawn = random_subset(part.total, num_keep(part.total, 1 - prune_ratio), generator=generator, part=part)
    indices = to_device(drawn.indices, scores.device)
    if epoch > 0:
        values = scores.index_select(0, indices)
        inside = _in_window(values, epoch, num_groups, window_scale, generator, part.narrow(len(values)))
        indices = indices.index_select(0, ids_of(inside))
    return Selection(indices)


def _in_window(
    values: Tensor, epoch: int, num_groups: int, window_scale: float, generator: torch.Generator, part: Part
) -> Tensor:
    """Return which values ``(m,)`` an epoch's window covers; non-finite ones always are."""
    if part.sum(count_nonfinite(values)):
        finite = is_finite(values)
        inside, part = torch.ones_like(finite), part.narrow(count_true(finite))
        if part.total:
            inside[finite] = _in_window(values[finite], epoch, num_groups, window_scale, generator, part)
        return inside
    starts = _group_starts(part.sketch(values, _SKETCH), num_groups)
    if len(starts) == 0:  # all equal: groups at random
        num_groups = min(num_groups, part.total)
        first, end = (-(-part.total * group // num_groups) for group in _window(epoch, num_groups, window_scale))
        return random_submask(torch.ones_like(values, dtype=torch.bool), end - first, generator, part)
    first, end = _window(epoch, len(starts) + 1, window_scale)
    inside = torch.ones_like(values, dtype=torch.bool)
    if first > 0:
        inside &= values >= starts[first - 1]
    if end <= len(starts):
        inside &= values < starts[end - 1]
    return inside


@final
class SeTa(PruningCallback):
    """Train on a window of loss groups that slides from epoch to epoch; ``prune_ratio`` is only the random share first.

    Each epoch drops a random ``prune_ratio`` of all samples, groups the others by loss, and trains the groups in the
    window. How much that saves depends on the groups' sizes, which are very unequal (`prune/saved_fraction` shows it).
    Nothing is re-weighted. The last epochs train on a random ``1 - prune_ratio`` of the samples.

    Args:
        prune_ratio: Share of all samples dropped at random each epoch, in [0, 1), or a schedule.
        num_groups: Number of loss groups.
        window_scale: Share of the groups in the window, in (0, 1].
        anneal_ratio: Share of the run after which epochs drop the random share only, in [0, 1].
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything; the window starts to slide after them.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Zhou et al., "Scale Efficient Training for Large Datasets", CVPR 2025.

    Example:
        >>> SeTa(window_scale=0.6)
        SeTa(prune_ratio=0.1, num_groups=5, window_scale=0.6, anneal_ratio=0.875)
    """

    shares_state = True
    set_by_ratio = RatioSetting(
        pilots=(0.0, 0.5),
        bound="Its window alone leaves out the least share: a larger `window_scale` leaves out less.",
    )

    def __init__(
        self,
        prune_ratio: Ratio = 0.1,
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
        check_schedule("prune_ratio", prune_ratio)
        check_int("num_groups", num_groups, low=1)
        check_ratio("window_scale", window_scale, closed_low=False, closed_high=True)
        check_ratio("anneal_ratio", anneal_ratio, closed_high=True)
        self.prune_ratio = prune_ratio
        self.num_groups = num_groups
        self.window_scale = window_scale
        self.anneal_ratio = anneal_ratio

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Keep the window's groups, or in the annealing phase a random subset."""
        moment = registry.moment(epoch)
        ratio = ratio_at("prune_ratio", self.prune_ratio, moment.progress)
        if is_annealing(moment, self.anneal_ratio):
            n = registry.num_samples
            return random_subset(n, num_keep(n, 1 - ratio), generator=generator, part=registry.part)
        return seta(
            registry.scores,
            epoch - self.warmup_epochs,
            ratio,
            self.num_groups,
            self.window_scale,
            generator=generator,
            part=registry.part,
        )
