"""The plan of an epoch where each process holds its own part only: of the selection, and of the order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of
from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.shuffle import Shuffle

_BLOCK = 1 << 20
"""Positions of the order that are looked at at once."""
_Array = np.ndarray[Any, np.dtype[Any]]


def shared_plan(selection: Selection, part: Part, *, epoch: int, seed: int, shuffle: bool) -> EpochPlan:
    """Order a selection of which each process has its part, as `EpochPlan.make` orders the whole; collective.

    Each process then holds what it visits, ``r, r + world_size, ...`` of the order. One all-to-all of the ids, and one
    of the weights if there are any.

    Args:
        selection: What is selected of this process's part, by position in it.
        part: Which part of the samples that is.
        epoch: Epoch number, from 0.
        seed: Seed of the order.
        shuffle: Whether the order is random, or ascending.
    """
    kept = part.narrow(len(selection))
    indices, weights = selection.indices.cpu(), selection.weights
    if not selection.ascending:
        indices, by_id = indices.sort()
        weights = None if weights is None else weights.cpu().index_select(0, by_id)
    visits = _shuffled(kept, Shuffle(kept.total, seed, epoch)) if shuffle else _ascending(kept)
    ids = indices.to(torch.int32 if part.total <= 2**31 else torch.int64, copy=True).add_(part.start)
    order = visits.bring(ids)
    del ids
    weights = None if weights is None else visits.bring(weights.cpu())
    return EpochPlan(epoch, order, weights, part.world_size, part=kept, num_shared=kept.total)


@final
class _Visits:
    """Who visits what.

    Args:
        kept: Which part of the selected samples this process has.
        sent: For each rank, which of them it visits, in the order of its visit, in several pieces.
        sources: Rank that has each of those ``(s,)`` that this process visits, in the order of its visit.
    """

    def __init__(self, kept: Part, sent: list[list[_Array]], sources: _Array) -> None:
        self.kept = kept
        self.picks = torch.from_numpy(np.concatenate([some for visited in sent for some in visited]))
        self.sent = [sum(map(len, visited)) for visited in sent]
        self.sources = torch.from_numpy(sources)
        self.received = np.bincount(sources, minlength=kept.world_size).tolist()

    def bring(self, values: Tensor) -> Tensor:
        """Return the values of what this process visits, padding included, given those ``(m,)`` of what it has."""
        kept = self.kept
        rows = values.index_select(0, self.picks).to(kept.device)
        came = kept.exchange(rows, self.sent, self.received).cpu()
        own, start = torch.empty_like(came), 0
        for rank, number in enumerate(self.received):
            own[ids_of(self.sources == rank)] = came[start : start + number]
            start += number
        return _padded(own, kept, kept.total)


def _padded(own: Tensor, part: Part, length: int) -> Tensor:
    """Fill up what a process visits of ``length`` positions by wrapping around, as `EpochPlan.shard` does."""
    slots = part.visits(length, 0)
    if length % part.world_size == 0:
        return own
    padded = own.new_empty(slots)
    padded[: len(own)] = own
    firsts = part.gather(padded[:1].to(part.device)).cpu()
    if len(own) < slots:
        padded[-1] = firsts[(part.rank + (slots - 1) * part.world_size) % length, 0]
    return padded


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
        return _padded(part.exchange(values[own].to(part.device), sent, received).cpu(), part, length)

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


def _ascending(kept: Part) -> _Visits:
    """Visit what is selected by rising id."""
    world_size = kept.world_size
    own = np.arange(len(kept), dtype=np.int32)
    sent = [[own[(rank - kept.start) % world_size :: world_size]] for rank in range(world_size)]
    ends = kept.gather(torch.tensor(kept.stop, device=kept.device)).cpu().numpy()
    visited = np.arange(kept.rank, kept.total, world_size)
    return _Visits(kept, sent, np.searchsorted(ends, visited, side="right").astype(np.int16))


def _shuffled(kept: Part, shuffle: Shuffle) -> _Visits:
    """Visit what is selected in a random order: each process makes all of it, bucket by bucket, and takes its own."""
    rank, world_size = kept.rank, kept.world_size
    buckets = shuffle.buckets(kept)
    counts = torch.from_numpy(np.bincount(buckets, minlength=shuffle.num_buckets))
    numbers = kept.gather(counts.to(kept.device)).cpu().numpy()  # (world_size, buckets)
    ends = numbers.cumsum(0)
    sent: list[list[_Array]] = [[] for _ in range(world_size)]
    sources, start = [], 0
    for bucket, size in enumerate(ends[-1].tolist()):
        order = shuffle.within(bucket, size).numpy()
        end = ends[rank, bucket]
        first = end - numbers[rank, bucket]
        members = np.flatnonzero(buckets == bucket).astype(np.int32) if shuffle.num_buckets > 1 else None
        for some in np.split(order, range(_BLOCK, size, _BLOCK)):
            places = np.flatnonzero((some >= first) & (some < end))
            visited = some[places] - first
            visited = visited.astype(np.int32) if members is None else members[visited]
            visitors = (places + start) % world_size
            for visitor in range(world_size):
                sent[visitor].append(visited[visitors == visitor])
            own = some[(rank - start) % world_size :: world_size]
            sources.append(np.searchsorted(ends[:, bucket], own, side="right").astype(np.int16))
            start += len(some)
    return _Visits(kept, sent, np.concatenate(sources))
