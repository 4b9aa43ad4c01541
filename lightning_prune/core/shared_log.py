"""The log of an epoch where each process keeps a part of the samples only, and trains those of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.part import Part, Route
from lightning_prune.core.step import ABSENT
from lightning_prune.core.windows import Judge, WholeWindows, Windows

_LOT = 1 << 20
"""Slots whose values are sent at once."""


@final
class SharedLog:
    """Brings what each process has recorded to those that keep the state of the samples; collective.

    A sample sends 4 bytes for its position in the part of the process that keeps it, and 4 for each value.

    Args:
        log: What this process recorded ``(1 + names, slots)``, float32, by slot: that of position ``r + slot * ranks``.
        shard: Ids ``(slots,)``, padding included.
        part: Which part of the samples this process keeps.
        kept: Which part of the selected ones.
        positions_done: How many of them were trained.
        starts: First slot of each step, and the end of the last one.

    Attributes:
        indices: Positions ``(m,)``, int64, in this process's part of the samples that were trained.
        values: What was recorded of them ``(1 + names, m)``.
    """

    def __init__(
        self, log: Tensor, shard: Tensor, part: Part, kept: Part, positions_done: int, starts: Sequence[int]
    ) -> None:
        self.log, self.shard, self.part, self.length = log, shard, part, kept.total
        self.starts = starts
        self.num_asked = max(0, -(-(min(positions_done, self.length) - part.rank) // part.world_size))
        self.indices = torch.empty(len(kept), dtype=torch.int64, device=log.device)
        self.values = log.new_empty(len(log), len(kept))
        done = 0
        for lot in self.lots():
            route, ids = self.route(lot)
            came = route.bring(torch.stack([ids, *log[:, lot].view(torch.int32)], dim=1)).T
            some = slice(done, done := done + came.shape[1])
            self.indices[some], self.values[:, some] = came[0], came[1:].contiguous().view(torch.float32)
        self.indices, self.values = self.indices[:done], self.values[:, :done]

    def lots(self) -> list[slice]:
        """Return runs of slots, as many on each rank: what is sent at once is copied a few times."""
        slots = self.starts[-1]
        return [slice(min(start, self.num_asked), min(start + _LOT, self.num_asked)) for start in range(0, slots, _LOT)]

    def route(self, lot: slice) -> tuple[Route, Tensor]:
        """Return the way of some slots to those who keep the samples, and the positions ``(b,)``, int32, in theirs."""
        ids, starts = self.shard[lot], torch.tensor(self.part.starts, dtype=self.shard.dtype, device=self.shard.device)
        targets = torch.bucketize(ids, starts[1:], right=True)
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
        part, world_size, starts = log.part, log.part.world_size, log.starts
        num_windows = -(-(len(starts) - 1) // num_steps)
        firsts = [min(rank * num_windows // world_size * num_steps, len(starts) - 1) for rank in range(world_size)]
        bounds = [*(starts[step] for step in firsts), starts[-1]]
        self.sent = [bounds[rank + 1] - bounds[rank] for rank in range(world_size)]
        self.slots = self.sent[part.rank]
        told = log.log[0] if row == 0 else torch.where(log.log[0] == ABSENT, ABSENT, log.log[row])
        came = part.exchange(told[: starts[-1]], self.sent, [self.slots] * world_size).view(world_size, self.slots)
        values = came.T.reshape(-1).cpu()  # in the order of the visit
        last = [*firsts[1:], len(starts) - 1][part.rank]
        lengths = torch.tensor(starts[firsts[part.rank] : last + 1], dtype=torch.int64).diff() * world_size
        windows = (torch.arange(len(lengths)) // num_steps).repeat_interleave(lengths)
        first = bounds[part.rank] * world_size
        inside = torch.arange(first, first + len(values)) < log.length
        self.present = (values != ABSENT).logical_and_(inside)
        sizes = torch.bincount(windows[self.present])
        self.whole = WholeWindows(values[self.present], sizes[sizes > 0])

    def judged(self, judge: Judge, dtype: torch.dtype) -> Tensor:
        """Return what a rule says of each sample ``(m,)`` of this process's part, on the CPU; collective."""
        log, part = self.log, self.log.part
        wire = torch.uint8 if dtype == torch.bool else dtype
        said = torch.zeros(len(self.present), dtype=wire)
        said[self.present] = self.whole.judged(judge, dtype).to(wire)
        rows = said.view(self.slots, part.world_size).T.reshape(-1).to(part.device)
        back = part.exchange(rows, [self.slots] * part.world_size, self.sent)
        own = torch.cat([log.route(lot)[0].bring(back[lot]) for lot in log.lots()]).cpu().to(dtype)
        return own if self.recorded is None else own[self.recorded.cpu()]
