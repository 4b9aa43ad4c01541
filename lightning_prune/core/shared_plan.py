"""The plan of an epoch where each process holds its own part only: of the selection, and of the order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.arrays import count_true, to_host
from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan
from lightning_prune.core.shuffle import Shuffle

_BLOCK = 1 << 18
"""Positions of the order that are looked at, and whose ids are sent, at once."""
_Array = np.ndarray[Any, np.dtype[Any]]


def shared_plan(
    selected: Tensor | None, weights: Tensor | None, part: Part, *, epoch: int, seed: int, shuffle: bool
) -> EpochPlan:
    """Order a selection of which each process has its part, as `EpochPlan.make` orders the whole; collective.

    Each process then holds what it visits, ``r, r + world_size, ...`` of the order. It is sent bucket by bucket, and
    each in blocks, so that little is held beside what is asked for and what is given.

    Args:
        selected: Which of this process's part of the samples are selected ``(len(part),)``, bool; None: all.
        weights: The weights ``(k,)`` of those, float32, by rising id; None: they have none.
        part: Which part of the samples that is.
        epoch: Epoch number, from 0.
        seed: Seed of the order.
        shuffle: Whether the order is random, or ascending.
    """
    kept = part.narrow(len(part) if selected is None else count_true(selected))
    dtype = torch.int32 if part.total <= 2**31 else torch.int64
    order = torch.empty(kept.visits(kept.total, 0), dtype=dtype)
    given = None if weights is None else torch.empty(len(order), dtype=torch.float32)
    host = to_host(*(values for values in (selected, weights) if values is not None))()
    weights = None if weights is None else host.pop()
    visits = _Visits(kept, Shuffle(kept.total, seed, epoch) if shuffle else None)
    done = 0
    for bucket, ids in enumerate(visits.members(host.pop() if host else None, part, dtype)):
        own_weights = None if weights is None else visits.of_bucket(weights, bucket)
        for block in visits.blocks(bucket):
            some = slice(done, done := done + len(block.sources))
            order[some] = block.bring(ids)
            if given is not None and own_weights is not None:
                given[some] = block.bring(own_weights)
    for values in (order,) if given is None else (order, given):
        _pad(values, kept, kept.total)
    return EpochPlan(epoch, order, given, part.world_size, part=kept, num_shared=kept.total)


@final
@dataclass(frozen=True)
class _Block:
    """Who visits what of some positions of the order.

    Args:
        kept: Which part of the selected samples this process has.
        picks: Which of those of the bucket that it has ``(m,)`` are at these positions, by the rank that visits them,
            in the order of its visit.
        sent: How many each rank visits.
        sources: Rank that has each of those ``(s,)`` that this process visits, in the order of its visit.
    """

    kept: Part
    picks: _Array
    sent: list[int]
    sources: _Array

    def bring(self, values: Tensor) -> Tensor:
        """Return the values of what this process visits ``(s,)``, given those of what it has of the bucket."""
        kept = self.kept
        received = np.bincount(self.sources, minlength=kept.world_size).tolist()
        rows = values.index_select(0, torch.from_numpy(self.picks)).to(kept.device)
        [came] = to_host(kept.exchange(rows, self.sent, received))()
        by_rank = torch.from_numpy(self.sources.argsort(kind="stable"))
        return torch.empty_like(came).index_copy_(0, by_rank, came)


@final
class _Visits:
    """An order of what is selected, of which each process makes all, bucket by bucket, and takes what it visits.

    Args:
        kept: Which part of the selected samples this process has.
        shuffle: The order; None: by rising id.
    """

    def __init__(self, kept: Part, shuffle: Shuffle | None) -> None:
        self.kept, self.shuffle = kept, shuffle
        self.num_buckets = 1 if shuffle is None else shuffle.num_buckets
        self.codes: _Array | None = None
        """Bucket ``(len(kept),)`` of each, where there are several."""
        counts = torch.tensor([len(kept)])
        if shuffle is not None and self.num_buckets > 1:
            self.codes = shuffle.buckets(kept).astype(np.uint8 if self.num_buckets < 256 else np.uint16)
            counts = torch.zeros(self.num_buckets, dtype=torch.int64)
            for some in np.split(self.codes, range(_BLOCK, len(kept), _BLOCK)):  # which are counted as int64
                counts += torch.from_numpy(np.bincount(some, minlength=self.num_buckets))
        numbers = kept.gather(counts.to(kept.device)).cpu().numpy()  # (world_size, buckets)
        self.ends = numbers.cumsum(0)
        self.firsts = self.ends[kept.rank] - numbers[kept.rank]

    def members(self, selected: Tensor | None, part: Part, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the ids of what this process has of each bucket, rising.

        Args:
            selected: Which of its part of the samples are selected ``(len(part),)``, bool; None: all.
            part: Which part of the samples that is.
            dtype: Type of an id.
        """
        if self.codes is None:
            yield _ids(np.ones(len(part), dtype=bool) if selected is None else selected.numpy(), part.start, dtype)
            return
        codes, num = self.codes, self.num_buckets
        if selected is not None:  # of each sample
            codes = np.full(len(part), num, dtype=codes.dtype)
            codes[selected.numpy()] = self.codes
        for bucket in range(num):
            yield _ids(codes == bucket, part.start, dtype)

    def of_bucket(self, values: Tensor, bucket: int) -> Tensor:
        """Return the values of what this process has of a bucket, given those ``(len(kept),)`` of all that it has."""
        return values if self.codes is None else torch.from_numpy(values.numpy()[self.codes == bucket])

    def blocks(self, bucket: int) -> Iterator[_Block]:
        """Yield who visits what of a bucket, block by block."""
        kept, world_size = self.kept, self.kept.world_size
        ends, first, end = self.ends[:, bucket], self.firsts[bucket], self.ends[kept.rank, bucket]
        size, start = int(ends[-1]), int(self.ends[-1, :bucket].sum())
        order = None if self.shuffle is None else self.shuffle.within(bucket, size).numpy()
        for begin in range(0, size, _BLOCK):
            stop = min(begin + _BLOCK, size)
            some = np.arange(begin, stop) if order is None else order[begin:stop]
            places = np.flatnonzero((some >= first) & (some < end))
            visitors = ((places + (start + begin)) % world_size).astype(np.int16)
            picks = (some[places] - first)[visitors.argsort(kind="stable")]
            sent = np.bincount(visitors, minlength=world_size).tolist()
            own = some[(kept.rank - start - begin) % world_size :: world_size]
            yield _Block(kept, picks, sent, np.searchsorted(ends, own, side="right").astype(np.int16))


def _ids(mask: _Array, first: int, dtype: torch.dtype) -> Tensor:
    """Return the positions where a mask ``(n,)`` is True, counted from ``first``."""
    ids, done = torch.empty(int(np.count_nonzero(mask)), dtype=dtype), 0
    for start in range(0, len(mask), _BLOCK):
        some = np.flatnonzero(mask[start : start + _BLOCK])
        ids[done : done + len(some)] = torch.from_numpy(some + (first + start))
        done += len(some)
    return ids


def _pad(values: Tensor, part: Part, length: int) -> Tensor:
    """Set the last of what a process visits of ``length`` positions, where it has one less than the first has.

    By wrapping around, as `EpochPlan.shard` does; collective.
    """
    if length % part.world_size > 0:
        firsts = part.gather(values[:1].to(part.device)).cpu()
        if part.visits(length) < len(values):
            values[-1] = firsts[(part.rank + (len(values) - 1) * part.world_size) % length, 0]
    return values


def shared_rest(plan: EpochPlan, positions: int, batches: int) -> EpochPlan:
    """Return what is left of a shared order, as `EpochPlan.after` does of one that each process holds; collective.

    The rest begins with the first process again, so that each visits what one other would have.
    """
    part, length = plan.part, plan.length - positions
    assert part is not None  # noqa: S101  (narrowing)
    rank, world_size = part.rank, part.world_size
    to, come_from = (rank - positions) % world_size, (rank + positions) % world_size
    own = slice(part.visits(positions), part.visits(plan.length))
    sent, received = ([0] * world_size for _ in range(2))
    sent[to], received[come_from] = own.stop - own.start, part.visits(length)

    def rest_of(values: Tensor) -> Tensor:
        rest = values.new_empty(part.visits(length, 0))
        rest[: received[come_from]] = part.exchange(values[own].to(part.device), sent, received)
        return _pad(rest, part, length)

    weights = None if plan.weights is None else rest_of(plan.weights)
    return replace(plan, order=rest_of(plan.order), weights=weights, first_batch=batches, num_shared=length)


def shared_digest(plan: EpochPlan) -> str:
    """Return a hash of a shared order, the same however many processes share it; collective."""
    part, total = plan.part, 0
    assert part is not None  # noqa: S101  (narrowing)
    visited = plan.order[: part.visits(plan.length)]  # without padding
    for start in range(0, len(visited), _BLOCK):
        ids = visited[start : start + _BLOCK].numpy().astype(np.uint64)
        places = np.arange(start, start + len(ids), dtype=np.uint64) * np.uint64(part.world_size)
        total += int(_mixed(_mixed(places + np.uint64(part.rank)) + ids).sum(dtype=np.uint64))
    halves = torch.tensor([total >> 32 & 0xFFFFFFFF, total & 0xFFFFFFFF], device=part.device)
    high, low = part.add_up(halves).tolist()
    return f"{((high << 32) + low) % (1 << 64):016x}"


def _mixed(values: _Array) -> _Array:
    """Return a hash of 64 bits of each value: the last steps of SplitMix64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Array = values ^ (values >> np.uint64(31))
    return mixed
