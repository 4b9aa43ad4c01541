"""The log of an epoch where each process keeps a part of the samples only, and trains those of all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import to_host
from lightning_prune.core.part import Part, Route
from lightning_prune.core.stats import count_nonfinite
from lightning_prune.core.step import ABSENT
from lightning_prune.core.windows import Judge, WholeWindows, Windows

_LOT = 1 << 18
"""Slots whose values are sent at once."""


@final
@dataclass(frozen=True)
class Brought:
    """What is to be noted of losses that have been put in their places.

    Args:
        num_losses: How many there were.
        num_nonfinite: How many of them are NaN or infinite.
        silent: Positions ``(m,)``, int64, of samples that were trained and gave none.
        answered: Those ``(k,)`` of samples that had given none so far, and gave one.
    """

    num_losses: int
    num_nonfinite: int
    silent: Tensor
    answered: Tensor


@final
class SharedLog:
    """Brings what each process has recorded to those that keep the state of the samples; collective.

    A sample sends 4 bytes for its position in the part of the process that keeps it, and 4 for each value.

    Args:
        log: What this process recorded ``(1 + names, slots)``, float32, by slot: those that it would have visited of
            what was trained before the rest of the epoch was shared anew, and those that it visits of the rest.
        shard: Ids ``(slots,)``, padding included.
        part: Which part of the samples this process keeps.
        kept: Which part of the selected ones.
        positions_done: How many of them were trained.
        steps: Position ``(s + 1,)``, int64, at which each step begins, and the one at which the last one ends.
        first: Position at which the rest begins; 0: the epoch was not shared anew.

    """

    def __init__(
        self, log: Tensor, shard: Tensor, part: Part, kept: Part, positions_done: int, steps: Tensor, first: int = 0
    ) -> None:
        self.log, self.shard, self.part, self.steps, self.first = log, shard, part, steps, first
        asked = [self.slots_before(min(positions_done, kept.total), rank) for rank in range(part.world_size)]
        self.num_asked, self.most_asked = asked[part.rank], max(asked)
        self.num_kept = len(kept)

    def brought(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is brought to this process, some at a time; collective.

        These are positions ``(m,)``, int32, in its part of the samples that were trained, and what was recorded of them
        ``(1 + names, m)``.
        """
        for lot in self.lots():
            route, ids = self.route(lot)
            came = route.bring(torch.stack([ids, *self.log[:, lot].view(torch.int32)], dim=1)).T
            yield came[0], came[1:].contiguous().view(torch.float32)

    def brought_at_once(self) -> tuple[Tensor, Tensor]:
        """Return all that :meth:`brought` yields, positions as int64; collective."""
        indices = torch.empty(self.num_kept, dtype=torch.int64, device=self.log.device)
        values, done = self.log.new_empty(len(self.log), self.num_kept), 0
        for ids, some in self.brought():
            place = slice(done, done := done + len(ids))
            indices[place], values[:, place] = ids, some
        return indices[:done], values[:, :done]

    def put_into(self, losses: Tensor, unanswered: Tensor | None) -> Brought:
        """Put the losses into those ``(len(part),)`` that this process keeps; collective.

        Args:
            losses: Where to.
            unanswered: Which samples ``(len(part),)`` have never given a loss so far; None: no one.
        """
        num_losses = num_nonfinite = 0
        silent, answered = [losses.new_empty(0, dtype=torch.int64)], [losses.new_empty(0, dtype=torch.int64)]
        for ids, (told, *_) in self.brought():
            ids, present = ids.long(), told != ABSENT
            if not bool(present.all()):
                silent.append(ids[~present])
                ids, told = ids[present], told[present]
            losses.scatter_(0, ids, told)
            num_losses, num_nonfinite = num_losses + len(told), num_nonfinite + count_nonfinite(told)
            if unanswered is not None:
                answered.append(ids[unanswered[ids]])
        return Brought(num_losses, num_nonfinite, torch.cat(silent), torch.cat(answered))

    def slots_before(self, position: int, rank: int) -> int:
        """Return how many slots of a process are of positions before this one."""
        before = min(position, self.first)
        return self.part.visits(before, rank) + self.part.visits(position - before, rank)

    def places(self, start: int, stop: int, rank: int) -> list[slice]:
        """Return which of the positions from ``start`` to ``stop`` a process has, counted from ``start``, in order."""
        runs = [(0, start, min(stop, self.first)), (self.first, max(start, self.first), stop)]
        world_size = self.part.world_size
        return [
            slice(low + (rank - (low - origin)) % world_size - start, high - start, world_size)
            for origin, low, high in runs
            if low < high
        ]

    def lots(self) -> list[slice]:
        """Return runs of slots, as many on each rank: what is sent at once is copied a few times."""
        most, own = self.most_asked, self.num_asked
        return [slice(min(start, own), min(start + _LOT, own)) for start in range(0, most, _LOT)]

    def route(self, lot: slice) -> tuple[Route, Tensor]:
        """Return the way of some slots to those who keep the samples, and the positions ``(b,)``, int32, in theirs."""
        ids, starts = self.shard[lot], torch.tensor(self.part.starts, dtype=self.shard.dtype, device=self.shard.device)
        targets = torch.bucketize(ids, starts[1:], out_int32=True, right=True)
        return Route(self.part, targets), (ids - starts[targets]).int()


@final
class SharedWindows(Windows):
    """Windows that the processes share: each is sent the values of its own, and sends back what a rule says of them.

    What it says then goes where the sample is kept. A sample sends 4 bytes, and twice those of each answer; collective.

    Args:
        log: What was recorded.
        row: Which row of it a rule is told.
        num_steps: Steps in a window.
        recorded: Which ``(m,)`` of the samples of this process's part have a loss; None: all.
    """

    def __init__(self, log: SharedLog, row: int, num_steps: int, recorded: Tensor | None) -> None:
        self.log, self.recorded = log, recorded
        part, world_size, steps = log.part, log.part.world_size, log.steps
        num_steps_in_all = len(steps) - 1
        num_windows = -(-num_steps_in_all // num_steps)
        firsts = [min(rank * num_windows // world_size * num_steps, num_steps_in_all) for rank in range(world_size)]
        firsts.append(num_steps_in_all)
        bounds = steps[firsts].tolist()
        self.start, self.stop = bounds[part.rank], bounds[part.rank + 1]
        self.sent = [log.slots_before(stop, part.rank) for stop in bounds]
        self.sent = [stop - start for start, stop in itertools.pairwise(self.sent)]
        self.received = [
            log.slots_before(self.stop, rank) - log.slots_before(self.start, rank) for rank in range(world_size)
        ]
        told = log.log[0] if row == 0 else torch.where(log.log[0] == ABSENT, ABSENT, log.log[row])
        [came] = to_host(part.exchange(told[: sum(self.sent)], self.sent, self.received))()
        values = came.new_empty(self.stop - self.start)  # in the order of the visit
        for place, some in self._runs(came):
            values[place] = some
        lengths = steps[firsts[part.rank] : firsts[part.rank + 1] + 1].diff()
        windows = (torch.arange(len(lengths)) // num_steps).repeat_interleave(lengths)
        self.present = values != ABSENT
        sizes = torch.bincount(windows[self.present])
        self.whole = WholeWindows(values[self.present], sizes[sizes > 0])

    def _runs(self, slots: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield which of the positions of this process's windows a run of all processes' slots ``(m,)`` is of."""
        start = 0
        for rank in range(self.log.part.world_size):
            for place in self.log.places(self.start, self.stop, rank):
                number = len(range(self.stop - self.start)[place])
                yield place, slots[start : start + number]
                start += number

    def judged(self, judge: Judge, dtype: torch.dtype) -> Tensor:
        """Return what a rule says of each sample ``(m,)`` of this process's part, on the CPU; collective."""
        log, part = self.log, self.log.part
        wire = torch.uint8 if dtype == torch.bool else dtype
        said = torch.zeros(len(self.present), dtype=wire)
        said[self.present] = self.whole.judged(judge, dtype).to(wire)
        rows = torch.empty_like(said)
        for place, some in self._runs(rows):
            some.copy_(said[place])
        back = part.exchange(rows.to(part.device), self.received, self.sent)
        own = torch.cat([log.route(lot)[0].bring(back[lot]) for lot in log.lots()])
        if self.recorded is not None:
            own = own[self.recorded]
        [own] = to_host(own)()
        return own.to(dtype)
