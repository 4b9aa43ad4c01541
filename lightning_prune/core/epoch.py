"""A running epoch: its plan on the device, and the log of the losses recorded so far."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of, to_device
from lightning_prune.core.begun import Begun, joined, pack_steps
from lightning_prune.core.checks import LoaderError
from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.sampler import EvenCuts, PlanBatchSampler
from lightning_prune.core.shared_log import SharedLog, SharedWindows
from lightning_prune.core.shared_plan import shared_digest
from lightning_prune.core.stats import count_nonfinite
from lightning_prune.core.step import ABSENT, StepRecord, wrong_length
from lightning_prune.core.windows import WholeWindows, Windows, window_runs

_BATCHES_AT_ONCE = 64
"""Batches whose views of the weights and of the log are cut in one call: each on its own takes as long as the copy."""


@final
@dataclass(frozen=True)
class EpochRecord:
    """What an epoch recorded, on all ranks together, in the order of the visit.

    Where each process keeps a part of the samples only, it is what was recorded of these: ids are positions in the
    part, in any order, and ``recorded`` says which of those ``asked`` have a loss.

    Attributes:
        indices: Sample ids ``(m,)``, int64, without repeats; only samples that have a loss.
        losses: Their losses ``(m,)``, float32, possibly not finite.
        recorded: Which positions ``(k,)`` of the epoch's plan have a loss; None: all of them.
        step_size: Positions that the ranks together train in one step.
        extra: What the method recorded beside the loss, by name, each ``(m,)`` float32.
        step_lengths: Positions ``(s,)`` of the plan that the ranks together trained in each step; None: ``step_size``.
        asked: Ids ``(t,)`` of the samples that were in a batch, whether they have a loss or not; None: all of the plan.
    """

    indices: Tensor
    losses: Tensor
    recorded: Tensor | None
    step_size: int
    extra: dict[str, Tensor]
    step_lengths: Tensor | None = None
    asked: Tensor | None = None
    shared: SharedLog | None = None

    def windows(self, name: str | None, num_steps: int) -> Windows:
        """Return the recorded samples ``(m,)`` in their windows of steps, to be judged; collective.

        Args:
            name: Which of ``extra`` a rule is told; None: the losses.
            num_steps: Steps in a window, from the epoch's first; the last one may have fewer.
        """
        if self.shared is not None:
            row = 0 if name is None else 1 + list(self.extra).index(name)
            return SharedWindows(self.shared, row, num_steps, self.recorded)
        return WholeWindows(self.losses if name is None else self.extra[name], self.window_lengths(num_steps))

    def window_lengths(self, num_steps: int) -> Tensor:
        """Return how many recorded samples ``(w,)`` each window of steps has; those without any do not count."""
        size, recorded = self.step_size * num_steps, self.recorded
        some_missing = recorded is not None and not bool(recorded[: len(self.losses)].all())  # not just the end
        if some_missing or self.step_lengths is not None:
            return window_runs(self.steps.cpu().div(num_steps, rounding_mode="floor"))[1]
        num_full, rest = divmod(len(self.losses), size)
        return torch.tensor([size] * num_full + [rest] * (rest > 0))

    @cached_property
    def num_nonfinite(self) -> int:
        """How many of the losses are NaN or infinite."""
        return count_nonfinite(self.losses)

    @cached_property
    def steps(self) -> Tensor:
        """The step ``(m,)``, int64, in which each was trained; a step is the union of the ranks' batches."""
        if self.step_lengths is not None:
            lengths = self.step_lengths.to(self.losses.device)
            steps = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
            return steps[: len(self.losses)] if self.recorded is None else steps[self.recorded[: len(steps)]]
        if self.recorded is not None:
            return ids_of(self.recorded).div(self.step_size, rounding_mode="floor")
        num, size = len(self.losses), self.step_size
        steps = torch.arange(-(-num // size), device=self.losses.device)
        return steps[:, None].expand(-1, size).flatten()[:num]  # a division of every position takes ten times as long


def check_same_on_all_ranks(selection: Selection, epoch: int, device: torch.device) -> None:
    """Raise RuntimeError, on every rank, unless all ranks have the same selection; collective."""
    digest = hashlib.blake2b(selection.indices.cpu().numpy().tobytes(), digest_size=8)
    if selection.weights is not None:
        digest.update(selection.weights.cpu().numpy().tobytes())
    own = torch.tensor([int.from_bytes(digest.digest(), "little", signed=True)], device=device)
    everyone = torch.empty(torch.distributed.get_world_size(), dtype=own.dtype, device=device)
    torch.distributed.all_gather_into_tensor(everyone, own)
    if differing := [rank for rank, value in enumerate(everyone.tolist()) if value != everyone[0]]:
        raise RuntimeError(
            f"Expected the same selection on every rank, but in epoch {epoch} rank(s) {differing} differ from rank 0. "
            "`select` must depend on the registry, the epoch and the generator only."
        )


def last_visits(order: Tensor, recorded: Tensor) -> Tensor:
    """Return where ``order`` ``(k,)`` has the last recorded visit of a sample ``(k,)``, bool, on the CPU.

    Example:
        >>> last_visits(torch.tensor([3, 1, 3, 1]), torch.tensor([True, True, True, False]))
        tensor([False,  True,  True, False])
    """
    positions = ids_of(recorded)
    ids = order[positions].flip(0).numpy()
    _, first = np.unique(ids, return_index=True)
    return torch.zeros(len(order), dtype=torch.bool).index_fill_(0, positions[len(positions) - 1 - first], True)


@final
class RunningEpoch:
    """Hands each step its slice of the epoch's weights, and keeps what the steps record, in the order of the plan.

    The log has one slot per position of this rank's shard, and one more for ids that are not in it. Since every rank's
    log is equally long and in plan order, ranks need no indices to exchange them.

    Args:
        plan: The epoch's samples in their order.
        batch_sampler: What the loader draws from; its sampler is given the plan.
        record_names: Names of the per-sample values recorded beside the loss.
        device: Where the log and the weights live.
        weighs: Hand steps weights of 1 where the selection has none, so that a compiled step meets one kind of input.
        begun: What of the epoch is trained already, where the rest of the plan is shared anew.

    Attributes:
        rest: What is left of the plan, which is what the log is of; else the plan.
        batch_length: Number of samples that the sampler drew for the running step.
        step_length: Number of samples that the running step trains.
    """

    by_ids = leaves_out = False

    def __init__(
        self,
        plan: EpochPlan,
        batch_sampler: PlanBatchSampler,
        record_names: tuple[str, ...],
        device: torch.device,
        *,
        weighs: bool = False,
        begun: Begun | None = None,
    ) -> None:
        self.batch_sampler = batch_sampler
        self.record_names = record_names
        self.device = device
        self.batches_done = 0 if begun is None else len(begun.steps)
        self.num_dropped, self._dropped_before = divmod(0 if begun is None else begun.dropped, plan.world_size)
        self.rank = batch_sampler.sampler.rank
        self.plan = plan
        self.begun = begun
        self.rest = rest = plan if begun is None else begun.rest_of(plan)
        batch_sampler.set_plan(rest)
        self.cuts = batch_sampler.cuts_of(rest)
        self.log = torch.full((1 + len(record_names), rest.shard_size + 1), ABSENT, dtype=torch.float32, device=device)
        self._rows = list(self.log)
        self._num_batches = len(self.cuts)
        self._cut: int | None = None
        self._log_views: list[tuple[Tensor, ...]] = []
        self._weight_views: tuple[Tensor, ...] = ()
        self._targets: list[Tensor] | None = None
        weights = rest.weights
        self.weights = None if weights is None else to_device(rest.shard(weights, self.rank), device)
        plain = weighs and weights is None
        self._ones = torch.ones(self.cuts.longest, dtype=torch.float32, device=device) if plain else None
        self._slots: slice | Tensor = slice(0, 0)
        self._batch_slots: slice | Tensor = self._slots
        self.step_length = self.batch_length = 0

    @cached_property
    def shard(self) -> Tensor:
        """Sample ids ``(shard_size,)``, int64, of this rank, on the device."""
        return to_device(self.rest.shard(self.rest.order, self.rank), self.device).long()

    @cached_property
    def digest(self) -> str:
        """A hash of the order of the visit, by which a resumed run knows that it has derived the same plan."""
        if self.plan.part is not None:
            return shared_digest(self.plan)
        digest = hashlib.blake2b(self.plan.order.long().numpy().tobytes(), digest_size=8)
        if self.plan.lengths is not None:
            digest.update(self.plan.lengths.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def slot_of(self) -> Tensor:
        """Slot of the log ``(n,)`` by sample id, for batches that are not slices of the plan."""
        slots = torch.full((self.batch_sampler.sampler.total,), self.rest.shard_size, device=self.device)
        slots[self.shard] = torch.arange(len(self.shard), device=self.device)
        return slots

    @cached_property
    def _counts(self) -> Tensor:
        """Room ``(shard_size + 1,)`` to count the rows of a slot in."""
        return torch.zeros_like(self._rows[0])

    @cached_property
    def weight_of(self) -> Tensor | None:
        """Loss weight ``(n,)`` by sample id (1 for ids of other shards), or None in an epoch without weights."""
        if self.weights is None:
            return None
        weights = torch.ones(self.batch_sampler.sampler.total, dtype=torch.float32, device=self.device)
        weights[self.shard] = self.weights
        return weights

    def weights_of(self, indices: Tensor | None) -> Tensor | None:
        """Return the loss weights ``(B,)`` of samples by id, or None in an epoch without weights."""
        assert indices is not None  # noqa: S101  (narrowing: the plan knows the ids of a step that gives none)
        return self._no_weights(len(indices)) if self.weight_of is None else self.weight_of[indices.to(self.device)]

    def _no_weights(self, length: int) -> Tensor | None:
        if self._ones is None or length <= len(self._ones):
            return None if self._ones is None else self._ones[:length]
        return self._ones.new_ones(length)  # several rows of a sample

    def has_ended(self, batch_idx: int) -> bool:
        """Return whether the loader has no batch for a step: beside a longer one it may end before the epoch does."""
        return batch_idx >= self._num_batches and not self.batch_sampler.begins_again

    def begin_step(self, batch_idx: int) -> Tensor | None:
        """Find the samples of a batch; return their weights ``(B,)``, or None in an epoch without weights."""
        batch_idx %= self._num_batches  # a `CombinedLoader` may cycle through a shorter loader
        if batch_idx >= self.batch_sampler.handed_out:
            raise LoaderError(
                f"Expected `{self.batch_sampler.loader_name}` to draw its batches from its batch sampler, which leaves "
                f"out what is not selected, but it trains batch {batch_idx} of epoch {self.plan.epoch} without having "
                "drawn it. Such a loader cannot be pruned: use a `torch.utils.data.DataLoader`."
            )
        cut, i = divmod(batch_idx, _BATCHES_AT_ONCE)
        if cut != self._cut:
            self._cut_views(cut)
        self._targets = [views[i] for views in self._log_views]
        start, length = self.cuts.start(batch_idx), self._targets[0].shape[0]
        self._slots = self._batch_slots = slice(start, start + length)
        self.step_length = self.batch_length = length
        return self._no_weights(length) if self.weights is None else self._weight_views[i]

    def _cut_views(self, cut: int) -> None:
        """Cut the log and the weights into those of the ``cut``-th lot of batches."""
        first = cut * _BATCHES_AT_ONCE
        starts = [
            self.cuts.start(batch) for batch in range(first, min(first + _BATCHES_AT_ONCE, self._num_batches) + 1)
        ]
        lot, lengths = slice(starts[0], starts[-1]), [b - a for a, b in itertools.pairwise(starts)]
        self._cut, self._log_views = cut, [torch.split(row[lot], lengths) for row in self._rows]
        self._weight_views = () if self.weights is None else torch.split(self.weights[lot], lengths)

    @property
    def longest_batch(self) -> int:
        """Number of samples of the epoch's longest batch."""
        return self.cuts.longest

    @property
    def step_indices(self) -> Tensor:
        """Ids ``(B,)`` of the batch that the sampler drew for the running step; after `narrow`, of what is left."""
        return self.shard[self._slots]

    def expect(self, num_losses: int, indices: Tensor | None) -> int:
        """Return how many losses a pick goes by: that of the samples that the sampler drew."""
        return self.batch_length

    def narrow(self, positions: Tensor) -> Tensor | None:
        """Train only these ``positions`` ``(k,)`` of the running batch; return their weights, as `begin_step` does."""
        slots = self._batch_slots
        self._slots = positions + slots.start if isinstance(slots, slice) else slots[positions]
        self.step_length, self._targets = len(positions), None
        return self._no_weights(len(positions)) if self.weights is None else self.weights[self._slots]

    def end_step(self, batch_idx: int, *, trained: bool = True) -> None:
        """Count a batch as done; a second time, it changes nothing."""
        if trained and batch_idx >= self.batches_done:
            self.num_dropped += self.batch_length - self.step_length
        self.batches_done = batch_idx + 1

    def write(self, step: StepRecord, extra: dict[str, Tensor]) -> None:
        """Copy a step's values into the log: one small kernel each, no index, no synchronisation.

        Of rows that the step gave the same id, the mean is logged.

        Raises:
            ValueError: If there are not as many values as samples in the batch.
        """
        step.notice_zeros(self.rank)
        slots, targets, expected = self._slots, self._targets, self.step_length
        if step.given_indices is not None:
            if self.plan.part is not None:
                raise LoaderError(
                    f"Expected no ids with `ScoreRegistry(sharded=True)`, whose batches know them, but got "
                    f"`{step.owner}.weighted_loss(..., indices=...)`. Leave `indices` out."
                )
            slots, targets = self.slot_of[step.given_indices.to(self.device)], None
            expected = len(slots)
        for i, values in enumerate([step.losses, *[extra[name] for name in self.record_names]]):
            if values is None or values.shape[0] != expected:
                raise ValueError(wrong_length(0 if values is None else len(values), expected, owner=step.owner))
            if targets is not None:
                targets[i].copy_(values, non_blocking=True)
            elif isinstance(slots, Tensor) and step.given_indices is not None:
                present = step.recorded_losses.to(self.log) != ABSENT
                write_means(self._rows[i], self._counts, slots, values.to(self.log), present)
            else:
                self._rows[i][slots] = values.to(self.log)

    @property
    def step_size(self) -> int:
        """Positions of the plan that the ranks together train in one step; on average, if batches differ in size."""
        own_batches = max(1, self._num_batches - self.rest.first_batch)
        size = self.batch_sampler.batch_size or math.ceil(self.rest.shard_size / own_batches)
        return int(size) * self.plan.world_size

    @cached_property
    def step_lengths(self) -> Tensor | None:
        """Positions ``(s,)`` of the plan that the ranks together train in each step; None: ``step_size`` in each."""
        world_size, lengths, begun = self.plan.world_size, self.rest.lengths, self.begun
        none = torch.zeros(1, dtype=torch.int64)
        if self.rest.length == 0:
            ends = none[:0]
        elif lengths is not None:
            ends = lengths.cumsum(0)[[*range(world_size - 1, len(lengths) - 1, world_size), -1]]
        elif begun is not None or (isinstance(self.cuts, EvenCuts) and self.cuts.moves):
            own = range(self.rest.first_batch, self._num_batches)
            ends = torch.tensor([self.cuts.start(batch + 1) for batch in own], dtype=torch.int64) * world_size
            ends.clamp_(max=self.rest.length)
        else:
            return None
        steps = ends.diff(prepend=none)
        return steps if begun is None else torch.cat([begun.steps, steps])

    def _step_ends(self) -> Tensor:
        """Return where each step of all ranks begins in the order, and where the last one ends ``(s + 1,)``, int64."""
        lengths = self.step_lengths
        if lengths is None:
            end = self._positions_before(self._num_batches)
            return (torch.arange(self._num_batches + 1) * self.step_size).clamp_(max=end)
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

    def positions_in(self, batches: int) -> int:
        """Return how many positions of the plan the first ``batches`` batches of each rank train, over all ranks.

        A `CombinedLoader` may cycle through a shorter loader: then positions count as often as they are trained.
        """
        if self.has_ended(batches):
            batches = self._num_batches
        cycles, batches = divmod(batches, self._num_batches)
        return cycles * self._positions_before(self._num_batches) + self._positions_before(batches)

    def _positions_before(self, batch: int) -> int:
        if self.step_lengths is not None:
            return int(self.step_lengths[:batch].sum())
        return min(self.plan.length, self.cuts.start(batch) * self.plan.world_size)

    def full_positions(self, batches: int) -> int:
        """Return how many positions ``batches`` batches of each rank would train if nothing was left out."""
        full = self.plan.full_length or self.batch_sampler.sampler.total
        length = self.batch_sampler.full_length
        batches = batches if self.batch_sampler.begins_again else min(batches, length)
        cycles, batches = divmod(batches, length)
        if self.plan.lengths is not None:
            return cycles * full + round(full * batches / length)
        return cycles * min(full, length * self.step_size) + min(full, batches * self.step_size)

    def full_steps(self, full_batches: int | float, num_batches: int | float) -> int:
        """Return how many positions would have been trained by now if nothing was left out.

        Args:
            full_batches: Batches that an epoch of all samples has; infinite if it ends with the run only.
            num_batches: Batches that the running epoch is to have, likewise.
        """
        if self.begun is not None:
            return round(self.begun.full * self.positions_done / max(1, self.positions_in(int(num_batches))))
        full = self.full_positions(self.batches_done if num_batches == math.inf else int(full_batches))
        if self.batches_done < num_batches < math.inf:  # `max_steps`: what was not reached is not saved
            full = round(full * self.batches_done / num_batches)
        return full

    @property
    def asked(self) -> Tensor:
        """Ids of the samples visited so far, padding left out."""
        return self.plan.order[: self.positions_done]

    @property
    def positions_done(self) -> int:
        """Positions of the plan visited so far, over all ranks."""
        return self.positions_in(self.batches_done)

    @property
    def samples_before(self) -> float:
        """Samples of the batches before the running one, on each rank, those left out included."""
        return self.positions_done / self.plan.world_size

    @property
    def positions_trained(self) -> int:
        """Positions of the plan trained so far, over all ranks: those visited and not left out of their batch."""
        return self.positions_done - self._dropped

    @property
    def _dropped(self) -> int:
        """Samples that were left out of their batches so far, over all ranks."""
        return self.num_dropped * self.plan.world_size + self._dropped_before

    @property
    def kept_fraction(self) -> float:
        """Share of a full epoch's positions that is in the plan, and was not left out of its batch."""
        full = self.plan.full_length or self.batch_sampler.sampler.total
        trained = self.positions_trained / self.positions_done if self._dropped else 1.0
        return self.plan.length / full * trained

    def collect(self) -> EpochRecord:
        """Gather the ranks' logs into one record: the epoch's only collective, but where each keeps a part only."""
        if self.plan.part is not None:
            return self._collect_part(self.own_part)
        log = self.log[:, :-1]
        logs = log[None]
        if self.plan.world_size > 1:
            logs = torch.empty(self.plan.world_size, *log.shape, dtype=torch.float32, device=self.device)
            torch.distributed.all_gather_into_tensor(logs.view(-1), log.reshape(-1))
        values, indices = self._whole(self.rest.unshard(logs)), to_device(self.plan.order, self.device).long()
        present = None
        if self.plan.may_repeat:
            present = values[0] != ABSENT
            present &= last_visits(self.plan.order, present.cpu()).to(self.device)
        elif not bool(values[0].amin() > ABSENT):  # something is missing, or NaN or -inf
            present = values[0] != ABSENT
        if present is not None:
            values, indices = values[:, present], indices[present]
        extra = dict(zip(self.record_names, values[1:], strict=True))
        asked = None if present is None else self.asked
        return EpochRecord(indices, values[0], present, self.step_size, extra, self.step_lengths, asked)

    @property
    def own_part(self) -> Part:
        """Which samples this process keeps the state of, where processes share it."""
        part = self.batch_sampler.sampler.part
        assert part is not None  # noqa: S101  (narrowing)
        return part

    def shared_log(self) -> SharedLog:
        """Return what was recorded, to be brought to the processes that keep it."""
        kept, begun, log, shard = self.plan.part, self.begun, self.log[:, :-1], self.rest.order
        assert kept is not None  # noqa: S101  (narrowing)
        if begun is not None:
            log = torch.cat([begun.log.to(log.device), log], dim=1)
            shard = torch.cat([self.plan.order[: begun.log.shape[1]], shard])
        first = 0 if begun is None else begun.positions
        shard, steps = shard.to(self.device), self._step_ends()
        return SharedLog(log, shard, self.own_part, kept, self.positions_done, steps, first)

    def _collect_part(self, part: Part) -> EpochRecord:
        """Bring what was recorded to the processes that keep it: one all-to-all."""
        shared = self.shared_log()
        asked, values = shared.brought_at_once()
        indices, present = asked, values[0] != ABSENT
        is_whole = self.positions_done >= self.plan.length
        if part.any(not (is_whole and bool(present.all()))):
            values, indices = values[:, present], indices[present]
            is_whole = False
        extra = dict(zip(self.record_names, values[1:], strict=True))
        missing = (None, None) if is_whole else (present, asked)
        return EpochRecord(indices, values[0], missing[0], self.step_size, extra, None, missing[1], shared)

    def _whole(self, values: Tensor) -> Tensor:
        """Return what is recorded of the whole plan ``(1 + names, k)``, given ``values`` of the rest of it."""
        return values if self.begun is None else self.begun.with_rest(values, len(self.plan.order))

    def log_state(self) -> Tensor:
        """Return what this rank has logged so far ``(1 + len(record_names), done)``, for a checkpoint."""
        done = self.rest.shard_size
        if "slot_of" not in self.__dict__ and self.batches_done < self._num_batches:
            done = self.cuts.start(self.batches_done)
        return self.log[:, :done].cpu().clone()

    def recorded(self, ranks: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return ids and losses ``(m,)``, on the CPU, that are in the ranks' logs: each ``"log"`` of a `log_state`.

        Those that an epoch had when it was begun elsewhere are among them.
        """
        logs = [local["log"][:1] for local in ranks] or [torch.empty(1, 0)]
        losses = self._whole(joined(self.rest, logs))[0]
        present = losses != ABSENT
        if self.plan.may_repeat:
            present &= last_visits(self.plan.order, present)
        return self.plan.order[present].long(), losses[present]

    def move_to(self, device: torch.device) -> None:
        """Move log and weights to a device, between steps."""
        self.device = device
        self.log = self.log.to(device)
        self._rows, self._cut = list(self.log), None
        self.weights = None if self.weights is None else self.weights.to(device)
        self._ones = None if self._ones is None else self._ones.to(device)
        for name in ("shard", "slot_of", "weight_of", "_counts"):
            self.__dict__.pop(name, None)

    @property
    def batches_to_skip(self) -> int:
        """Batches that a new iterator has to leave out, to go on after those that are done."""
        if self.has_ended(self.batches_done):
            return self._num_batches
        return self.batches_done % self._num_batches if self.batches_done > self._num_batches else self.batches_done

    def local_state(self) -> dict[str, Any]:
        """Return what only this rank knows of the epoch, for a checkpoint."""
        begun = {} if self.begun is None or self.plan.part is None else {"begun": self.begun.log}
        return {"log": self.log_state(), **begun}

    def shared_state(self, full_batches: int | float) -> dict[str, Any]:
        """Return what every rank knows of the epoch, by which its rest can be shared anew.

        Args:
            full_batches: Batches that an epoch of all samples has; infinite if it ends with the run only.
        """
        if (
            full_batches == math.inf or self.batches_done > self._num_batches
        ):  # several loaders, which go on as they were
            return {}
        begun, lengths = self.begun, self.step_lengths
        if lengths is None:
            whole, last = divmod(self.positions_done, self.step_size)
            lengths = torch.tensor([self.step_size] * whole + [last] * (last > 0), dtype=torch.int64)
        full = self.full_positions(int(full_batches)) if begun is None else begun.full
        before: dict[str, Any] | None = None
        if begun is not None:
            log = begun.log if self.plan.part is None else None  # else each rank has its own
            before = {"positions": begun.positions, "batches": len(begun.steps), "log": log}
        steps = pack_steps(lengths[: self.batches_done])
        return {"steps": steps, "dropped": self._dropped, "full": full, "begun": before}

    def continue_from(self, batches_done: int, num_dropped: int, local: dict[str, Any]) -> None:
        """Go on after ``batches_done`` batches; ``local`` has what :meth:`local_state` returned then, on this rank."""
        self.batches_done, self.num_dropped = batches_done, num_dropped
        if (log := local["log"]) is not None:
            self.log[:, : log.shape[1]] = log.to(self.device)


def write_means(row: Tensor, counts: Tensor, slots: Tensor, values: Tensor, present: Tensor) -> None:
    """Write to each slot of a row of a log the mean of its values ``(B,)`` that are present; of one, that one.

    Args:
        row: Where to write, ``(m,)``.
        counts: Room ``(m,)`` to count the values of a slot in.
        slots: Where each value belongs ``(B,)``, int64.
        values: The values ``(B,)``.
        present: Which of them count ``(B,)``, bool.
    """
    number = counts.index_fill_(0, slots, 0).index_add_(0, slots, present.to(row)).index_select(0, slots)
    row.index_fill_(0, slots, 0).index_add_(0, slots, torch.where(present, values, 0))
    means = row.index_select(0, slots) / number.clamp(min=1)
    row.index_copy_(0, slots, torch.where(number > 0, means, ABSENT))
