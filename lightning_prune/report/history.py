"""What a run keeps of each sample for its report: a bounded number of bytes, however long the run."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.rng import make_generator, permutation
from lightning_prune.core.table import SampleTable, changed_length

SLOTS = 32
"""Losses kept of a followed sample; a longer run keeps the last loss of each of 16 to 32 stretches of epochs."""

MOST_FOLLOWED = 200_000
"""Samples whose losses are kept in course; of a larger dataset, as many drawn at random."""

_MOST_HALF = 65_504.0
_COLUMNS = {
    "times": (torch.int16, 0),
    "mean": (torch.float32, 0.0),
    "squares": (torch.float32, 0.0),
    "first": (torch.float32, math.nan),
    "last": (torch.float32, math.nan),
    "last_epoch": (torch.int16, -1),
    "forgotten": (torch.int16, 0),
    "was_easy": (torch.bool, False),
}


@final
class SampleHistory:
    """Counts, mean, spread, first and last loss of each sample, and the course of the losses of some.

    It takes an epoch's record at the epoch's end, on its device: no step notices. 23 bytes a sample, and 64 for each of
    at most 200,000 that are followed.

    Attributes:
        times: Epochs ``(n,)``, int16, in which the sample was trained, and gave a finite loss.
        mean: Mean of its losses ``(n,)``, float32; 0 where there is none. Only finite ones count.
        squares: Sum of squared deviations from it ``(n,)``, float32.
        first: First loss ``(n,)``, float32; NaN: none.
        last: Last loss ``(n,)``, float32; NaN: none.
        last_epoch: Epoch ``(n,)``, int16, in which it was last trained; -1: never.
        forgotten: How often its loss went from below the epoch's mean to above it ``(n,)``, int16, from one visit
            to the next.
        was_easy: Whether its last loss was below the mean of that epoch's ``(n,)``, bool.
        followed: Ids ``(k,)``, int64, ascending, of the samples in :attr:`course`; None: all of them.
        course: Losses ``(SLOTS, k)``, float16; NaN: not trained in that stretch of epochs.
        span: Epochs in a slot of :attr:`course`.
    """

    times: Tensor
    mean: Tensor
    squares: Tensor
    first: Tensor
    last: Tensor
    last_epoch: Tensor
    forgotten: Tensor
    was_easy: Tensor

    def __init__(self) -> None:
        self.num_samples = 0
        self.start(0, "cpu")

    def start(self, num_samples: int, device: torch.device | str, *, max_epochs: int | None = None) -> None:
        """Begin a run of which nothing is known yet."""
        self.num_samples = num_samples
        for name, (dtype, fill) in _COLUMNS.items():
            setattr(self, name, torch.full((num_samples,), fill, dtype=dtype, device=device))
        self.followed: Tensor | None = None
        if num_samples > MOST_FOLLOWED:
            drawn = permutation(num_samples, make_generator(num_samples, 0, "report"))[:MOST_FOLLOWED]
            self.followed = drawn.long().sort().values.to(device)
        num_followed = num_samples if self.followed is None else len(self.followed)
        self.course = torch.full((SLOTS, num_followed), torch.nan, dtype=torch.float16, device=device)
        self.span = max(1, math.ceil((max_epochs or 0) / SLOTS))

    def take(self, table: SampleTable, record: EpochRecord, visited: Tensor | None = None) -> None:
        """Add an epoch, at its end.

        Args:
            table: The per-sample state.
            record: The losses of the epoch.
            visited: Ids ``(k,)`` that it trained; looked at where there are no losses to tell.
        """
        device = table.losses.device
        if table.epoch == 0 or self.num_samples == 0:
            self.start(table.num_samples, device, max_epochs=table.max_epochs)
        elif table.num_samples != self.num_samples:
            self._grow(table.num_samples)
        self._move_to(device)
        indices, losses = _finite(record.indices, record.losses)
        if len(record.indices) == 0 and visited is not None:
            indices = torch.unique(visited.to(device).long())
        self._count(indices, table.epoch)
        if len(losses) == 0:
            return
        self._add_losses(indices, losses)
        self._follow(indices, losses, table.epoch)

    def _count(self, indices: Tensor, epoch: int) -> None:
        self.times.index_add_(0, indices, torch.ones_like(indices, dtype=self.times.dtype))
        self.last_epoch.index_fill_(0, indices, epoch)

    def _add_losses(self, indices: Tensor, losses: Tensor) -> None:
        """Welford's update, which stays exact where losses are nearly equal."""
        seen = self.first[indices]
        is_new = seen.isnan()
        times = self.times[indices].float()
        before = self.mean[indices]
        after = before + (losses - before) / times
        self.mean[indices] = after
        self.squares[indices] += (losses - before) * (losses - after)
        self.first[indices] = torch.where(is_new, losses, seen)
        self.last[indices] = losses
        is_easy = losses < losses.double().mean().float()
        self.forgotten[indices] += self.was_easy[indices] & ~is_easy & ~is_new
        self.was_easy[indices] = is_easy

    def _follow(self, indices: Tensor, losses: Tensor, epoch: int) -> None:
        while epoch // self.span >= SLOTS:
            self._halve()
        slot = self.course[epoch // self.span]
        values = losses.clamp(-_MOST_HALF, _MOST_HALF).half()
        if self.followed is None:
            slot[indices] = values
            return
        everyone = torch.full((self.num_samples,), torch.nan, dtype=torch.float16, device=slot.device)
        everyone[indices] = values
        found = everyone[self.followed]
        slot.copy_(torch.where(found.isnan(), slot, found))

    def _halve(self) -> None:
        """Make one slot of two: of both, the later loss."""
        earlier, later = self.course[::2], self.course[1::2]
        merged = torch.where(later.isnan(), earlier, later)
        self.course = torch.cat([merged, torch.full_like(merged, torch.nan)])
        self.span *= 2

    def _grow(self, num_samples: int) -> None:
        more = num_samples - self.num_samples
        if more < 0:
            raise StateMismatchError(changed_length(self.num_samples, num_samples))
        for name, (_, fill) in _COLUMNS.items():
            values: Tensor = getattr(self, name)
            setattr(self, name, torch.cat([values, values.new_full((more,), fill)]))
        if self.followed is None:  # the new ones are not: what is kept of a run is bounded
            self.followed = torch.arange(self.num_samples, device=self.course.device)
        self.num_samples = num_samples

    def _move_to(self, device: torch.device) -> None:
        if self.mean.device == device:
            return
        for name in _COLUMNS:
            setattr(self, name, getattr(self, name).to(device))
        self.course = self.course.to(device)
        self.followed = None if self.followed is None else self.followed.to(device)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each sample's losses ``(n,)``, float32; 0 of one, NaN of none."""
        spread = (self.squares / self.times.clamp(min=1)).clamp(min=0).sqrt()
        return torch.where(self.first.isnan(), torch.nan, spread)

    def columns(self) -> dict[str, Tensor]:
        """Return what is known of each sample ``(n,)``, on the CPU; a mean loss of none is NaN."""
        mean = torch.where(self.first.isnan(), torch.nan, self.mean)
        kept = ("times", "first", "last", "last_epoch", "forgotten")
        columns = {"mean": mean, "spread": self.spread, **{name: getattr(self, name) for name in kept}}
        return {name: values.cpu() for name, values in columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain tensors on the CPU and numbers."""
        tensors = {name: getattr(self, name).cpu().clone() for name in _COLUMNS}
        followed = None if self.followed is None else self.followed.cpu().clone()
        return {**tensors, "followed": followed, "course": self.course.cpu().clone(), "span": self.span}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; it moves to the run's device with the next epoch."""
        for name in _COLUMNS:
            setattr(self, name, state[name].clone())
        self.followed = None if state["followed"] is None else state["followed"].clone()
        self.course, self.span = state["course"].clone(), state["span"]
        self.num_samples = len(self.mean)


def _finite(indices: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    finite = losses.isfinite()
    if bool(finite.all()):
        return indices, losses.float()
    return indices[finite], losses[finite].float()
