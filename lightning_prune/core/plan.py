"""What an epoch trains on, in which order, on which rank, and with which weights. Pure functions of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of, is_ascending, to_device, to_host
from lightning_prune.core.checks import check_int, check_ratio
from lightning_prune.core.draw import regroup
from lightning_prune.core.part import Part
from lightning_prune.core.rng import coins, numpy_generator
from lightning_prune.core.shuffle import Shuffle


def num_keep(num_samples: int, keep_ratio: float) -> int:
    """Return how many of ``num_samples`` a ratio keeps: the library's one rounding rule.

    ``floor(num_samples * keep_ratio + 1e-6)``, at least 1 and at most ``num_samples``; the small term mends products
    such as ``100 * 0.29 = 28.999...``.

    Example:
        >>> num_keep(100, 0.29), num_keep(3, 0.1)
        (29, 1)
    """
    check_int("num_samples", num_samples, low=1)
    check_ratio("keep_ratio", keep_ratio, closed_high=True)
    return min(num_samples, max(1, math.floor(num_samples * keep_ratio + 1e-6)))


def random_submask(mask: Tensor, count: int, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Return a mask ``(n,)`` that is True at exactly ``count`` of the positions where ``mask`` is, uniformly drawn.

    Each position throws a coin, and the few that are then too many or missing are drawn among the candidates. Coins are
    uniform over the sets of one size, and so is what the correction makes of them; a permutation costs thrice as much.

    Args:
        mask: Where to draw from ``(n,)``, bool.
        count: Number of positions, in [0, number of candidates].
        generator: CPU generator of the draws.
        part: Which part of a mask this process has, where several share it: the draw is then that of the whole.

    Example:
        >>> drawn = random_submask(torch.tensor([True, True, False, True]), 2, torch.Generator().manual_seed(0))
        >>> int(drawn.sum()), bool(drawn[2])
        (2, False)
    """
    part = Part.whole(len(mask)) if part is None else part
    numpy_rng = numpy_generator(generator)
    threshold = round(count / max(1, part.count(mask)) * 65536)
    drawn = to_device(torch.from_numpy(coins(numpy_rng, part) < threshold), mask.device).logical_and_(mask)
    excess = part.count(drawn) - count
    if excess != 0:
        candidates = ids_of(drawn if excess > 0 else mask & ~drawn)
        of_candidates = part.narrow(len(candidates))
        picks = numpy_rng.choice(of_candidates.total, abs(excess), replace=False, shuffle=False) - of_candidates.start
        own = torch.from_numpy(picks[(picks >= 0) & (picks < len(candidates))])
        drawn[candidates[to_device(own, mask.device)]] = excess < 0
    return drawn


@final
@dataclass(frozen=True)
class Selection:
    """The samples that an epoch trains on.

    Args:
        indices: Sample ids ``(k,)``, int64, positions in the training dataset, without repeats, in any order.
        weights: Loss weights ``(k,)``, float32, aligned with ``indices``. None: all ones.

    Raises:
        TypeError: If ``indices`` is not an int64 tensor or ``weights`` is not a floating-point tensor.
        ValueError: If the shapes are not ``(k,)``.

    Example:
        >>> Selection(torch.tensor([4, 1, 7])).indices.tolist()
        [4, 1, 7]
    """

    indices: Tensor
    weights: Tensor | None = None
    _mask: Tensor | None = field(default=None, repr=False, compare=False, kw_only=True)  # of `from_mask`, not made anew

    def __post_init__(self) -> None:
        if not isinstance(self.indices, Tensor) or self.indices.dtype != torch.int64:
            got = self.indices.dtype if isinstance(self.indices, Tensor) else type(self.indices).__name__
            raise TypeError(f"Expected `indices` to be an int64 tensor, but got {got}.")
        if self.indices.dim() != 1:
            raise ValueError(f"Expected `indices` to have shape (k,), but got {tuple(self.indices.shape)}.")
        if self.weights is None:
            return
        if not isinstance(self.weights, Tensor) or not self.weights.is_floating_point():
            got = self.weights.dtype if isinstance(self.weights, Tensor) else type(self.weights).__name__
            raise TypeError(f"Expected `weights` to be a floating-point tensor or None, but got {got}.")
        if self.weights.shape != self.indices.shape:
            raise ValueError(
                f"Expected `weights` to have the shape of `indices`, {tuple(self.indices.shape)}, "
                f"but got {tuple(self.weights.shape)}."
            )
        if self.weights.dtype != torch.float32:
            object.__setattr__(self, "weights", self.weights.float())

    def __len__(self) -> int:
        return self.indices.numel()

    @classmethod
    def all(cls, num_samples: int, device: torch.device | str = "cpu") -> Selection:
        """Select every sample, unweighted."""
        return cls(torch.arange(num_samples, device=device))

    @classmethod
    def from_mask(cls, mask: Tensor) -> Selection:
        """Select the samples whose ``mask`` ``(n,)`` is True, ascending, unweighted."""
        return cls(ids_of(mask), _mask=mask.clone())

    @cached_property
    def ascending(self) -> bool:
        """Whether the ids rise strictly, as those of most rules do."""
        return self._mask is not None or is_ascending(self.indices)

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest id."""
        low, high = (self.indices[0], self.indices[-1]) if self.ascending else torch.aminmax(self.indices)
        return int(low), int(high)

    def mask(self, num_samples: int) -> Tensor:
        """Return which of ``num_samples`` samples are selected ``(num_samples,)``, bool, on the indices' device."""
        if self._mask is not None and len(self._mask) == num_samples:
            return self._mask
        none = torch.zeros(num_samples, dtype=torch.bool, device=self.indices.device)
        return none.index_fill_(0, self.indices, True)

    def check(self, num_samples: int, total: int | None = None) -> None:
        """Raise ValueError unless this selects at least one of ``num_samples`` samples, none twice, weights finite.

        Of a part of the samples it may be none, where ``total`` are selected of all.
        """
        if total == 0 or (total is None and len(self) == 0):
            raise ValueError("Expected a selection of at least one sample, but got none: an epoch cannot be empty.")
        if len(self) == 0:
            return
        if self.weights is not None:
            least, most = (float(v) for v in torch.aminmax(self.weights))
            if not (least >= 0 and most < math.inf):  # a NaN anywhere makes both NaN
                raise ValueError(f"Expected finite weights >= 0, but got weights in [{least}, {most}].")
        low, high = self.ends
        if low < 0 or high >= num_samples:
            raise ValueError(f"Expected selected ids in [0, {num_samples}), but got ids in [{low}, {high}].")
        if self.ascending:
            return
        seen = torch.zeros(num_samples, dtype=torch.bool, device=self.indices.device)
        seen[self.indices] = True
        if (distinct := int(seen.sum())) != len(self):
            raise ValueError(
                f"Expected a selection of each sample at most once, but {len(self) - distinct} of {len(self)} ids are "
                "repeats. Take `indices.unique()`, and `weights` to count a sample more than once."
            )


@final
@dataclass(frozen=True)
class EpochPlan:
    """The order in which the ranks together visit a selection.

    Without ``lengths``, rank ``r`` of ``world_size`` trains positions ``r, r + world_size, ...``; so a step of all
    ranks is one contiguous run of the order, whatever the world size. With them the order is a list of batches, of
    which rank ``r`` trains the ``r``-th, the ``(r + world_size)``-th, and so on. Either is padded by wrapping around,
    so that the ranks take as many steps; the padded copies are trained (as `DistributedSampler` does) but not recorded.

    Args:
        epoch: Epoch number, from 0.
        order: Sample ids ``(k,)`` in the order of the visit; int32 where that suffices, else int64.
        weights: Loss weights ``(k,)`` aligned with ``order``, or None.
        world_size: Number of ranks.
        lengths: Lengths ``(b,)``, int64, of the batches that the order consists of, or None: the loader cuts it evenly.
        full_length: Positions that the order would have if nothing was left out; None: one for each sample.
        full_batches: Batches that it would have, with ``lengths``.
        selection: What was selected, where that is not what the order holds: a user's sampler may leave out samples and
            repeat others.
        first_batch: Batches of each rank before the order's first: those of an epoch that was begun otherwise.
        part: What processes share the order, where each holds what it visits only, padding included.
        num_shared: Positions ``k`` of an order that is shared.
    """

    epoch: int
    order: Tensor
    weights: Tensor | None = None
    world_size: int = 1
    lengths: Tensor | None = None
    full_length: int | None = None
    full_batches: int = 0
    selection: Selection | None = None
    first_batch: int = 0
    part: Part | None = None
    num_shared: int = 0

    @classmethod
    def make(
        cls, selection: Selection, *, epoch: int, seed: int, shuffle: bool = True, world_size: int = 1
    ) -> EpochPlan:
        """Order a selection: a fresh permutation for each (seed, epoch) if ``shuffle``, else ascending."""
        k, top = len(selection), selection.ends[1]
        dtype = torch.int32 if top < 2**31 else torch.int64
        everything = selection.ascending and top == k - 1  # then ids are positions
        ids = selection.indices[:0] if everything and shuffle else selection.indices
        copies = to_host(ids.to(dtype), *([] if selection.weights is None else [selection.weights]))
        picks = Shuffle(k, seed, epoch).order() if shuffle else None
        ids, *given = copies()
        weights = given[0] if given else None
        if picks is None:
            if selection.ascending:
                return cls(epoch, ids, weights, world_size)
            picks = ids.argsort()
        order = picks if everything else ids.index_select(0, picks)
        return cls(epoch, order.to(dtype), None if weights is None else weights.index_select(0, picks), world_size)

    @classmethod
    def of_draw(
        cls,
        selection: Selection,
        drawn: Tensor,
        lengths: Tensor | None = None,
        *,
        num_samples: int,
        epoch: int,
        world_size: int = 1,
        drop_last: int = 0,
    ) -> EpochPlan:
        """Order a selection as a user's sampler has drawn it: what is not selected is left out.

        Args:
            selection: The selection.
            drawn: Ids ``(m,)``, int64, in the order drawn, possibly with repeats.
            lengths: Lengths ``(b,)`` of the drawn batches; None: ids were drawn one by one.
            num_samples: Length of the dataset.
            epoch: Epoch number, from 0.
            world_size: Number of ranks.
            drop_last: Length below which a last batch is left out, unless it is the only one.
        """
        full_batches = 0 if lengths is None else len(lengths)
        weighed = [] if selection.weights is None else [selection.indices, selection.weights]
        mask, *weighed = to_host(selection.mask(num_samples), *weighed)()
        kept = mask.index_select(0, drawn)
        order = drawn if bool(kept.all()) else drawn[kept]
        if lengths is not None and len(order) < len(drawn):
            drawn_lengths, lengths = lengths, _left_of(lengths, kept)
            if len(lengths) > 1 and int(lengths[-1]) < drop_last:
                order, lengths = order[: -int(lengths[-1])], lengths[:-1]
            if len(lengths) > 1 and int(lengths[-1]) == 1 < int(drawn_lengths.min()) and int(lengths[-2]) > 2:
                lengths[-2:] += torch.tensor([-1, 1])  # BatchNorm cannot train on one sample
        weights = None
        if weighed:
            by_id = torch.ones(num_samples, dtype=torch.float32)
            weights = by_id.index_copy_(0, *weighed).index_select(0, order)
        order = order.to(torch.int32 if num_samples <= 2**31 else torch.int64)
        return cls(epoch, order, weights, world_size, lengths, len(drawn), full_batches, selection)

    def after(self, positions: int, batches: int) -> EpochPlan:
        """Return what is left of the order after ``positions``, trained in ``batches`` batches of each rank."""
        weights = None if self.weights is None else self.weights[positions:]
        lengths = None if self.lengths is None else self.lengths[self.lengths.cumsum(0) > positions]
        return replace(self, order=self.order[positions:], weights=weights, lengths=lengths, first_batch=batches)

    @property
    def length(self) -> int:
        """Positions ``k`` of the order."""
        return len(self.order) if self.part is None else self.num_shared

    @property
    def may_repeat(self) -> bool:
        """Whether an id may be in the order more than once."""
        return self.selection is not None

    @cached_property
    def shard_size(self) -> int:
        """Samples of the rank that has most, padding included."""
        if self.lengths is None:
            return math.ceil(self.length / self.world_size)
        return max(int(self.lengths_of(rank).sum()) for rank in range(self.world_size))

    def _batches_of(self, rank: int) -> tuple[Tensor, int]:
        """Return the numbers of the batches of a rank, and how many of them are no padding."""
        assert self.lengths is not None  # noqa: S101  (narrowing)
        num = len(self.lengths)
        own = torch.arange(rank, rank + math.ceil(num / self.world_size) * self.world_size, self.world_size)
        return own % num, int((own < num).sum())

    def lengths_of(self, rank: int) -> Tensor:
        """Return the lengths of the batches of a rank, padding included, where the order consists of batches."""
        assert self.lengths is not None  # noqa: S101  (narrowing)
        return self.lengths[self._batches_of(rank)[0]]

    def _positions(self, rank: int) -> tuple[Tensor, int]:
        """Return the positions that a rank visits, and how many of them are no padding."""
        assert self.lengths is not None  # noqa: S101  (narrowing)
        batches, real = self._batches_of(rank)
        lengths, starts = self.lengths[batches], (self.lengths.cumsum(0) - self.lengths)[batches]
        offsets = starts - (lengths.cumsum(0) - lengths)
        return offsets.repeat_interleave(lengths) + torch.arange(int(lengths.sum())), int(lengths[:real].sum())

    def shard(self, values: Tensor, rank: int) -> Tensor:
        """Return the part of ``values`` ``(k,)``, aligned with ``order``, that ``rank`` visits, padding included."""
        if self.world_size == 1 or len(values) == 0 or self.part is not None:
            return values
        if self.lengths is not None:
            return values.index_select(0, self._positions(rank)[0].to(values.device))
        padded = self.shard_size * self.world_size
        repeats = math.ceil(padded / len(values))
        return values.repeat(repeats)[:padded][rank :: self.world_size].contiguous()

    def unshard(self, shards: Tensor) -> Tensor:
        """Undo :meth:`shard`: ``(world_size, ..., shard_size)`` to ``(..., k)``, without the padding."""
        if self.lengths is None or self.world_size == 1:
            return shards.movedim(0, -1).flatten(-2)[..., : len(self.order)]
        values = shards.new_empty(*shards.shape[1:-1], len(self.order))
        for rank, shard in enumerate(shards):
            positions, real = self._positions(rank)
            values[..., positions[:real].to(values.device)] = shard[..., :real]
        return values


def _left_of(lengths: Tensor, kept: Tensor) -> Tensor:
    """Return the lengths of the batches that are made of what is kept ``(m,)`` of those of ``lengths`` ``(b,)``."""
    ends = lengths.cumsum(0)
    total = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    counts = total[ends] - total[ends - lengths]
    most = int(lengths.max())
    is_even = bool((lengths[:-1] == most).all())  # then only the last is shorter, and may be filled as the others
    capacities = [most] * len(lengths) if is_even else lengths.tolist()
    return torch.tensor(regroup(counts.tolist(), capacities))


def scheduler_calls(step: int, kept_steps: int, full_steps: int) -> int:
    """Return how often to step a schedule at optimizer step ``step`` (from 1) of a shortened epoch.

    Over the ``kept_steps`` of the epoch these add up to exactly ``full_steps``, spread evenly.

    Example:
        >>> [scheduler_calls(step, 4, 10) for step in (1, 2, 3, 4)]
        [2, 3, 2, 3]
    """
    return step * full_steps // kept_steps - (step - 1) * full_steps // kept_steps
