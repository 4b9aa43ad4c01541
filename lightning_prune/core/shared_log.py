"""The log of an epoch where each process keeps a part of the samples only, and trains those of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.part import Part, Route
from lightning_prune.core.step import ABSENT
from lightning_prune.core.windows import Judge, judge_windows

_LOT = 1 << 22
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
        for lot in self._lots():
            route, ids = self._route(lot)
            came = route.bring(torch.stack([ids, *log[:, lot].view(torch.int32)], dim=1)).T
            some = slice(done, done := done + came.shape[1])
            self.indices[some], self.values[:, some] = came[0], came[1:].contiguous().view(torch.float32)
        self.indices, self.values = self.indices[:done], self.values[:, :done]

    def _lots(self) -> list[slice]:
        """Return runs of slots, as many on each rank: what is sent at once is copied a few times."""
        slots = self.starts[-1]
        return [slice(min(start, self.num_asked), min(start + _LOT, self.num_asked)) for start in range(0, slots, _LOT)]

    def _route(self, lot: slice) -> tuple[Route, Tensor]:
        """Return the way of some slots to those who keep the samples, and the positions ``(b,)``, int32, in theirs."""
        ids, starts = self.shard[lot], torch.tensor(self.part.starts, dtype=self.shard.dtype, device=self.shard.device)
        targets = torch.bucketize(ids, starts[1:], right=True)
        return Route(self.part, targets), (ids - starts[targets]).int()

    def in_windows(self, row: int, num_steps: int, judge: Judge, dtype: torch.dtype) -> Tensor:
        """Return what a rule says of each sample ``(m,)`` of this process's part, on the CPU; collective.

        Windows are shared among the processes: each is sent the values of its own, 4 bytes a sample, and sends back
        what the rule says of them, which then goes where the sample is kept.

        Args:
            row: Which row of the log it is told.
            num_steps: Steps in a window.
            judge: The rule, as `judge_windows` takes it.
            dtype: What it returns.
        """
        part, world_size = self.part, self.part.world_size
        num_windows = -(-(len(self.starts) - 1) // num_steps)
        firsts = [min(rank * num_windows // world_size * num_steps, len(self.starts) - 1) for rank in range(world_size)]
        bounds = [*(self.starts[step] for step in firsts), self.starts[-1]]
        sent = [bounds[rank + 1] - bounds[rank] for rank in range(world_size)]
        received = [sent[part.rank]] * world_size
        told = self.log[row] if row == 0 else torch.where(self.log[0] == ABSENT, ABSENT, self.log[row])
        came = part.exchange(told[: self.starts[-1]], sent, received).view(world_size, sent[part.rank])
        values = came.T.reshape(-1).cpu()  # in the order of the visit
        last = [*firsts[1:], len(self.starts) - 1][part.rank]
        lengths = torch.tensor(self.starts[firsts[part.rank] : last + 1], dtype=torch.int64).diff() * world_size
        windows = (torch.arange(len(lengths)) // num_steps).repeat_interleave(lengths)
        first = bounds[part.rank] * world_size
        present = (values != ABSENT).logical_and_(torch.arange(first, first + len(values)) < self.length)
        sizes = torch.bincount(windows[present])
        wire = torch.uint8 if dtype == torch.bool else dtype
        judged = torch.zeros(len(values), dtype=wire)
        judged[present] = judge_windows(values[present], sizes[sizes > 0], judge, dtype).to(wire)
        back = part.exchange(judged.view(sent[part.rank], world_size).T.reshape(-1).to(part.device), received, sent)
        return torch.cat([self._route(lot)[0].bring(back[lot]) for lot in self._lots()]).cpu().to(dtype)
