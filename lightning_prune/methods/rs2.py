"""RS2 (Okanovic et al., ICLR 2024): repeated random subsets that together go through the data, pass after pass."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import count_true
from lightning_prune.core.checks import check_int
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection, num_keep
from lightning_prune.core.ratio import Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.rng import make_generator, permutation
from lightning_prune.core.table import SampleTable
from lightning_prune.methods.random import random_subset
from lightning_prune.trainer.callback import PruningCallback

_SEED, _SIZE = "rs2_seed", "rs2_size"
_NO_SIZE, _SEVERAL_SIZES = 0, -1
"""What stands for the size of the rounds where there was none yet, or where a schedule has changed it."""


def rs2_subset(num_samples: int, k: int, round_index: int, seed: int) -> Selection:
    """Return the subset of a round, without any state: successive rounds use all samples equally often.

    Each pass over the data is a permutation of its own, derived from the seed and the pass's number, and a round is the
    next block of it. A round that comes to the end of a pass goes on with the next one, past the ids that it has
    already; these keep their place, and the round after takes them up. With ``k > n / 2`` the blocks are what a round
    leaves out. So at every time any two samples differ by at most one round in use.

    Args:
        num_samples: Number of samples n.
        k: Number of samples in a round, in [1, n].
        round_index: Number of rounds before this one.
        seed: Seed of the permutations.

    Returns:
        Exactly ``k`` ascending ids, unweighted.

    Raises:
        TypeError: If an argument is not an int.
        ValueError: If one is out of range.

    Example:
        >>> rounds = [rs2_subset(6, 2, r, seed=0).indices.tolist() for r in range(3)]
        >>> sorted(i for ids in rounds for i in ids)
        [0, 1, 2, 3, 4, 5]
    """
    check_int("num_samples", num_samples, low=1)
    check_int("k", k, low=1, high=num_samples)
    check_int("round_index", round_index, low=0)
    if k == num_samples:
        return Selection.all(num_samples)
    by_absence = 2 * k > num_samples
    block = _block(num_samples, num_samples - k if by_absence else k, round_index, seed)
    keep = torch.full((num_samples,), by_absence)
    return Selection.from_mask(keep.index_fill_(0, block.long(), not by_absence))


def _block(n: int, size: int, round_index: int, seed: int) -> Tensor:
    """Return the ids ``(size,)`` of a round; ``2 * size <= n``, so that a pass's end is no matter of its beginning."""

    def order(number: int) -> Tensor:
        return permutation(n, make_generator(seed, number, "rs2"))

    number, start = divmod(round_index * size, n)
    ids = order(number)
    if start + size > n:
        end = ids[start:]
        following = order(number + 1)[:size]
        return torch.cat([end, following[_first_outside(following, end, start + size - n, n)]])
    if number > 0 and 0 < start < size:  # the round before took `start` ids of this pass, past its own of the last one
        taken = _first_outside(ids[:size], order(number - 1)[start - size :], start, n)
        left = torch.ones(start + size, dtype=torch.bool)
        left[:size] = ~taken
        return ids[: start + size][left]
    return ids[start : start + size]


def least_used(counts: Tensor, k: int, seed: int) -> Selection:
    """Return the ``k`` samples that were used least, for rounds of changing size.

    Ties are broken by a permutation that stays as long as there are samples of the lowest count: rounds are blocks of
    it. As in :func:`rs2_subset`, any two samples then differ by at most one round in use.

    Args:
        counts: How often each sample was used ``(n,)``.
        k: Number of samples in the round, in [1, n].
        seed: Seed of the permutations.

    Example:
        >>> least_used(torch.tensor([1, 0, 1, 0]), 2, seed=0).indices.tolist()
        [1, 3]
    """
    check_int("k", k, low=1, high=len(counts))
    counts = counts.cpu()
    order = permutation(len(counts), make_generator(seed, int(counts.min()), "rs2 by use")).long()
    used = counts.index_select(0, order)
    return Selection(order.index_select(0, used.argsort(stable=True)[:k]).sort().values)


def _first_outside(ids: Tensor, others: Tensor, count: int, n: int) -> Tensor:
    """Return which of ``ids`` ``(m,)`` are the first ``count`` that are not among ``others``."""
    outside = torch.ones(n, dtype=torch.bool).index_fill_(0, others.long(), False).index_select(0, ids)
    return outside & (outside.cumsum(0) <= count)


@final
class RS2(PruningCallback):
    """Train each epoch on the next block of a random permutation; ``prune_ratio`` is the share of all samples left out.

    Every sample is used equally often (a difference of one round at most), which random subsets drawn anew are not.
    Needs no scores, re-weights nothing and anneals nothing; a module without `WeightedLossMixin` will do.

    Args:
        prune_ratio: Share of all samples left out of each epoch, in [0, 1), or a schedule.
        replacement: Draw every epoch's subset anew instead, as :class:`RandomPruning` does.
        seed: Seed of the permutations. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything; the first pass starts after them.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        In the published code the round that wraps around is one sample short and is filled up from the same
        permutation; here it goes on with the next one, and every round has exactly k distinct samples.

    References:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024.

    Example:
        >>> RS2(prune_ratio=0.9)
        RS2(prune_ratio=0.9, replacement=False)
    """

    needs_mixin = False
    for_any_module = "RS2()"
    ranks_by_scores = False
    set_by_ratio = RatioSetting()

    def __init__(
        self,
        prune_ratio: Ratio = 0.7,
        replacement: bool = False,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        self.prune_ratio = prune_ratio
        self.replacement = replacement

    def setup_columns(self, registry: SampleTable) -> None:
        """Note the seed: a resumed run goes on with the permutations that it was started with."""
        registry.add_state(_SEED, torch.tensor(self.resolved_seed))
        registry.add_state(_SIZE, torch.tensor(_NO_SIZE))

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Return the block of this epoch."""
        n = registry.num_samples
        k = num_keep(n, 1 - ratio_at("prune_ratio", self.prune_ratio, registry.moment(epoch).progress))
        if self.replacement:
            return random_subset(n, k, generator=generator)
        seed = int(registry.state[_SEED])
        if int(registry.state[_SIZE]) in (_NO_SIZE, k):
            return rs2_subset(n, k, epoch - self.warmup_epochs, seed)
        return least_used(registry.counts, k, seed)

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Note whether all rounds so far had one size."""
        k, size = count_true(registry.selected), registry.state[_SIZE]
        if k < registry.num_samples:
            size.fill_(k if int(size) in (_NO_SIZE, k) else _SEVERAL_SIZES)
