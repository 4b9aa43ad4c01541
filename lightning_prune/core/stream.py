"""A running epoch of a stream: no plan says what comes next, so the batches say which samples they hold."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from lightning_prune.core.checks import LoaderError, warn_on_first_rank
from lightning_prune.core.epoch import EpochRecord, RunningEpoch, write_means
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.pruned_stream import PrunedStream
from lightning_prune.core.step import ABSENT, StepRecord, wrong_length

_NEVER = torch.iinfo(torch.int32).min
"""Bits that no loss has, once -0.0 is 0.0: the least of all, where the ranks' losses are brought together."""


@final
class Stream:
    """What a session plans for a loader that draws from a stream.

    Args:
        num_samples: Number of samples of the whole stream; 0: it is not known, and nothing is kept by sample.
        batch_size: Samples in a batch of one rank, as far as the loader tells.
        seed: Seed of the run.
        rank: This process's rank.
        world_size: Number of ranks.
        filters: What leaves samples out within the dataset. Empty: they are trained with weight 0.
        needs_ids: Whether each step must tell the ids of its samples.
        repeats: Whether a sample may come more than once in an epoch.

    Attributes:
        num_replicas: Number of ranks.
        full_length: Batches per rank of an epoch of all samples: not known.
        is_checked: Whether the ids of a whole epoch were looked at.
    """

    is_drawn = False
    begins_again = False
    is_alone = False

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        filters: list[PrunedStream],
        needs_ids: bool = True,
        repeats: bool = False,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_replicas = world_size
        self.filters = filters
        self.needs_ids = needs_ids
        self.repeats = repeats
        self.full_length = math.inf
        self.is_checked = False

    def make_plan(self, selection: Selection, epoch: int) -> EpochPlan:
        """Return the selection in ascending order: the stream's own is not known."""
        if len(selection) == 0:  # nothing is kept by sample
            return EpochPlan(epoch, selection.indices, world_size=self.num_replicas)
        return EpochPlan.make(selection, epoch=epoch, seed=self.seed, shuffle=False, world_size=self.num_replicas)

    def start(
        self,
        plan: EpochPlan,
        record_names: tuple[str, ...],
        selected: Tensor | None,
        device: torch.device,
        *,
        weighs: bool,
    ) -> StreamEpoch:
        """Begin an epoch of the samples ``selected`` ``(n,)``, bool; None: of all."""
        for part in self.filters:
            part.select(selected)
        return StreamEpoch(self, plan, record_names, selected, device, weighs=weighs)


@final
class StreamEpoch:
    """Finds the weights of a step by its ids, and keeps what it records by id.

    The log has a row of losses, one for each further value, and one of the number of the step; and a slot for each
    sample of the stream, and one more for what is not recorded: samples that the selection leaves out.

    Args:
        stream: What the loader draws from.
        plan: The selection, its ids ascending.
        record_names: Per-sample values recorded beside the loss.
        selected: Which samples ``(n,)``, bool, are selected; None: all.
        device: Where the log and the weights live.
        weighs: Hand steps weights of 1 where the selection has none.

    Attributes:
        batch_length: Number of samples of the running step's batch; 0 until it is known.
        step_length: Number of samples that the running step trains.
        longest_batch: Number of samples of the longest batch so far.
        num_dropped: Samples that were left out of their batches by a pick, on this rank.
        num_rows: Losses that steps were trained on, on this rank.
        leaves_out: Whether samples that are not selected come in the batches, with weight 0.
    """

    by_ids = True

    def __init__(
        self,
        stream: Stream,
        plan: EpochPlan,
        record_names: tuple[str, ...],
        selected: Tensor | None,
        device: torch.device,
        *,
        weighs: bool = False,
    ) -> None:
        self.stream = stream
        self.plan = plan
        self.record_names = record_names
        self.device = device
        self.rank = stream.rank
        self.batches_done = self.num_dropped = self.num_rows = 0
        self.batch_length = self.step_length = self.longest_batch = 0
        self.was_resumed = False
        n = stream.num_samples
        self.leaves_out = selected is not None and not stream.filters
        self.log = torch.full((2 + len(record_names), n + 1), ABSENT, dtype=torch.float32, device=device)
        self._selected = None
        if selected is not None:
            self._selected = torch.cat([selected.to(device), selected.new_zeros(1, device=device)])
        self._weights = self._weights_by_id(weighs)
        self._seen = torch.tensor([n, -1, 0, 0], device=device)  # lowest and highest id, repeats, and not selected
        self._totals: list[int] | None = None

    def _weights_by_id(self, weighs: bool) -> Tensor | None:
        """Return the loss weights ``(n + 1,)`` by id, the last one for what is no id; None: all are 1."""
        given, n = self.plan.weights, self.stream.num_samples
        if given is None and not self.leaves_out and not weighs:
            return None
        weights = torch.zeros(n + 1, dtype=torch.float32)
        weights[self.plan.order.long()] = 1 if given is None else given
        return weights.to(self.device)

    @property
    def longest(self) -> int:
        """Number of samples of the epoch's longest batch so far."""
        return self.longest_batch

    @cached_property
    def digest(self) -> str:
        """A hash of the selection, by which a resumed run knows that it has derived the same one."""
        return hashlib.blake2b(self.plan.order.long().numpy().tobytes(), digest_size=8).hexdigest()

    def has_ended(self, batch_idx: int) -> bool:
        """Return False: a step has a batch."""
        return False

    def begin_step(self, batch_idx: int) -> None:
        """Begin a step, of whose samples nothing is known before it gives their ids."""
        self.batch_length = self.step_length = 0

    def _slots_of(self, indices: Tensor | None) -> Tensor:
        """Return where the log has these samples ``(B,)``, the last slot for ids that are out of range.

        Raises:
            ValueError: If there are no ids, or no such.
        """
        n = self.stream.num_samples
        if not isinstance(indices, Tensor) or indices.dim() != 1 or indices.is_floating_point():
            got = "none"
            if indices is not None:
                got = f"{tuple(indices.shape)} {indices.dtype}" if isinstance(indices, Tensor) else repr(type(indices))
            raise ValueError(
                "Expected the ids of the samples with the losses, int64 (B,), since a stream yields them in an order "
                f"of its own, but got {got}. Let the stream yield an id in [0, {n}) with each sample, and write "
                "`self.weighted_loss(losses, indices=ids)`."
            )
        indices = indices.to(self.device, non_blocking=True).long()
        return torch.where((indices >= 0) & (indices < n), indices, n)

    def weights_of(self, indices: Tensor | None) -> Tensor | None:
        """Return the loss weights ``(B,)`` of samples by id, 0 for those that are not selected; None: all are 1."""
        if indices is None and not self.stream.needs_ids:
            return None
        slots = self._slots_of(indices)
        return None if self._weights is None else self._weights.index_select(0, slots)

    @property
    def step_indices(self) -> Tensor:
        """Refuse to tell the ids of a step that gave none.

        Raises:
            ValueError: Always; the message says what to write.
        """
        return self._slots_of(None)

    def expect(self, num_losses: int, indices: Tensor | None) -> int:
        """Take note of a batch, of whose length that of its losses is all that is known."""
        self.batch_length = self.step_length = num_losses
        self.longest_batch = max(self.longest_batch, num_losses)
        if indices is not None and len(indices) and self._looks(self.batches_done):
            low, high = torch.aminmax(indices)
            self._check([int(low), int(high), 0, 0])
        return num_losses

    def _looks(self, batch_idx: int) -> bool:
        """Return whether ids are looked at after this step: of a first epoch, after 1, 2, 4, 8, ... of them."""
        return self.stream.num_samples > 0 and not self.stream.is_checked and batch_idx & (batch_idx + 1) == 0

    def narrow(self, positions: Tensor) -> None:
        """Train only these ``positions`` ``(k,)`` of the running batch."""
        self.step_length = len(positions)

    def end_step(self, batch_idx: int, *, trained: bool = True) -> None:
        """Count a batch as done; a second time, it changes nothing."""
        if trained and batch_idx >= self.batches_done:
            self.num_dropped += self.batch_length - self.step_length
        self.batches_done = batch_idx + 1

    def write(self, step: StepRecord, extra: dict[str, Tensor]) -> None:
        """Copy a step's values into the log; of rows that the step gave the same id, the mean.

        Raises:
            LoaderError: If ids are out of range, or come twice; looked at in the first steps, and at the epoch's end.
            ValueError: If there are no ids, or not as many as losses.
        """
        step.notice_zeros(self.rank)
        losses = step.recorded_losses
        if self.batch_length == 0:
            self.expect(len(losses), None)
        if len(losses) != self.step_length:
            raise ValueError(wrong_length(len(losses), self.step_length, owner=step.owner))
        self.num_rows += len(losses)
        if step.given_indices is None and not self.stream.needs_ids:
            return
        slots = self._slots_of(step.given_indices)
        if len(slots) != len(losses):
            raise ValueError(wrong_length(len(losses), len(slots), owner=step.owner))
        if len(slots) and self.stream.num_samples:
            self._write(step, slots, extra)

    def _write(self, step: StepRecord, slots: Tensor, extra: dict[str, Tensor]) -> None:
        n, batch_idx, given = self.stream.num_samples, self.batches_done - 1, step.given_indices
        assert given is not None  # noqa: S101  (narrowing)
        inside = slots < n
        selected = inside if self._selected is None else self._selected.index_select(0, slots)
        before = self.log[-1].index_select(0, slots)
        came_before = (before != ABSENT) & (before != batch_idx) & inside
        self._note(given.to(slots), came_before, inside & ~selected)
        slots = torch.where(selected, slots, n)
        present = step.recorded_losses.to(self.log) != ABSENT
        for row, name in zip(self.log, (None, *self.record_names), strict=False):
            values = step.recorded_losses if name is None else extra[name]
            if len(values) != len(slots):
                raise ValueError(wrong_length(len(values), len(slots), owner=step.owner))
            write_means(row, self._counts, slots, values.to(self.log), present)
        self.log[-1].index_fill_(0, slots, batch_idx)
        if not self._looks(batch_idx):
            return
        if batch_idx == 0 and self.stream.num_replicas > 1 and not self.was_resumed:
            self._compare(given)
        self._check(self._seen.tolist())

    @cached_property
    def _counts(self) -> Tensor:
        """Room ``(n + 1,)`` to count the rows of a sample in."""
        return torch.zeros_like(self.log[0])

    def _note(self, ids: Tensor, repeated: Tensor, left_out: Tensor) -> None:
        """Note, on the device, what is to be looked at."""
        low, high = torch.aminmax(ids)
        seen = self._seen
        sums = torch.stack([repeated.sum(), left_out.sum()])
        self._seen = torch.cat([torch.minimum(seen[:1], low), torch.maximum(seen[1:2], high), seen[2:] + sums])

    def _compare(self, ids: Tensor) -> None:
        """Look, in a run's first step, whether two ranks have the same sample; collective."""
        everyone: list[list[int]] = [[] for _ in range(self.stream.num_replicas)]
        torch.distributed.all_gather_object(everyone, ids.tolist())
        every = [i for own in everyone for i in set(own)]
        self._check([min(every), max(every), 0, 0])
        if len(set(every)) < len(every) and not self.stream.repeats:
            twice = next(i for i in every if every.count(i) > 1)
            raise LoaderError(
                f"Expected each sample of the stream on one of the {self.stream.num_replicas} processes, but sample "
                f"{twice} is in the first batch of several. Share the stream among them: let rank r yield what is its "
                "part only. If samples are drawn with repeats on purpose, `ScoreRegistry(..., repeats=True)`."
            )

    def _check(self, seen: list[int]) -> None:
        """Raise LoaderError if ids were out of range, came twice, or should not have come."""
        low, high, repeats, left_out = seen
        n = self.stream.num_samples
        if low < 0 or high >= n:
            raise LoaderError(
                f"Expected ids in [0, {n}), by `ScoreRegistry(num_samples={n})`, but `weighted_loss(losses, "
                f"indices=ids)` was given ids in [{low}, {high}]. Give the number of samples of the whole stream, and "
                "number them from 0."
            )
        if repeats and not self.stream.repeats and not self.was_resumed:
            raise LoaderError(
                f"Expected each sample of the stream once in an epoch, but {repeats} came in another batch of epoch "
                f"{self.plan.epoch} before. Workers that each read the whole stream do that: share it among them, by "
                "`torch.utils.data.get_worker_info()`. If samples are drawn with repeats on purpose, "
                "`ScoreRegistry(..., repeats=True)`."
            )
        if left_out and self.stream.filters:
            raise LoaderError(
                f"Expected `PrunedStream` to leave out what is not selected, but {left_out} such samples came in "
                f"epoch {self.plan.epoch}: the ids of `weighted_loss(losses, indices=ids)` are not those that its "
                "`key` finds, or what reads from it keeps samples over from one epoch to the next."
            )

    @property
    def step_size(self) -> int:
        """Samples that the ranks together train in one step, as far as the loader tells."""
        return (self.stream.batch_size or 0) * self.stream.num_replicas

    def collect(self) -> EpochRecord:
        """Bring the ranks' logs together: three collectives, in a run of several processes.

        Raises:
            LoaderError: If ids were out of range, or came twice; on every rank.
        """
        passed, dropped = (
            sum(part) for part in zip((0, 0), *(part.counts for part in self.stream.filters), strict=True)
        )
        here = int((self.log[-1, :-1] != ABSENT).sum())
        own = torch.tensor([self.num_rows, self.num_dropped, passed, dropped, here], device=self.device)
        everyone = torch.cat([own, self._seen])[None]
        if self.stream.num_replicas > 1:
            mine, everyone = everyone, everyone.new_empty(self.stream.num_replicas, everyone.shape[1])
            torch.distributed.all_gather_into_tensor(everyone, mine)
        rows = everyone.tolist()
        for row in rows:
            self._check(row[5:])
        self._totals = [sum(column) for column in list(zip(*rows, strict=True))[:5]]
        if self.batches_done == 0:
            warn_on_first_rank(
                "Nothing was trained in an epoch: of the samples that are selected, none came in the stream, or none "
                "in the part of one rank, which the others wait for. Use a lower `prune_ratio`, or parts that are "
                "alike.",
                self.rank,
            )
        values, steps = self._merged(self.log[:-1, :-1], self.log[-1, :-1])
        visited = steps != ABSENT
        if self._totals[4] > int(visited.sum()):
            self._check([0, 0, self._totals[4] - int(visited.sum()), 0])
        self.stream.is_checked = True
        return self._record(values, steps, visited)

    def _record(self, values: Tensor, steps: Tensor, visited: Tensor) -> EpochRecord:
        """Return what samples ``(n,)`` have recorded, in the order in which they were trained."""
        ids = visited.nonzero().squeeze(1)
        order = ids.index_select(0, steps.index_select(0, ids).argsort(stable=True))
        self.visited = order
        lengths = torch.bincount(steps.index_select(0, order).long(), minlength=self.batches_done)
        values = values.index_select(1, order)
        present = values[0] != ABSENT
        recorded = None if bool(present.all()) else present
        if recorded is not None:
            values, order = values[:, recorded], order[recorded]
        extra = dict(zip(self.record_names, values[1:], strict=True))
        asked = None if recorded is None else self.asked
        return EpochRecord(order, values[0], recorded, max(1, self.step_size), extra, lengths.cpu(), asked)

    def _merged(self, values: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return all ranks' values ``(1 + names, n)`` and steps ``(n,)``; of a sample on several ranks, the last."""
        world_size = self.stream.num_replicas
        if world_size == 1:
            return values, steps
        absent = steps == ABSENT
        keys = torch.where(absent, -1, steps.long() * world_size + self.rank)
        own = keys.clone()
        torch.distributed.all_reduce(keys, torch.distributed.ReduceOp.MAX)
        bits = torch.where((own == keys) & ~absent, (values + 0.0).view(torch.int32), _NEVER)
        torch.distributed.all_reduce(bits, torch.distributed.ReduceOp.MAX)
        values = torch.where(bits == _NEVER, ABSENT, bits.view(torch.float32))
        return values, torch.where(keys < 0, ABSENT, keys.div(world_size, rounding_mode="floor").float())

    @property
    def asked(self) -> Tensor:
        """Ids of the samples that were trained, after :meth:`collect`."""
        return self.visited

    def told_of_missing(self, num_batches: int | float) -> str | None:
        """Return what to tell, after :meth:`collect`, if samples did not come in an epoch of all; None: nothing."""
        n, came = self.stream.num_samples, len(self.visited)
        is_whole = self.stream.needs_ids and not self.stream.repeats and self.batches_done < num_batches
        if came >= n or self._sums[1] > 0 or not is_whole:
            return None
        return (
            f"Of {n} samples, by `ScoreRegistry(num_samples={n})`, {came} came in epoch {self.plan.epoch}, which was "
            "to have all of them: the others count as unseen. That is right if the loader drops a last batch, ranks or "
            "samples of a rank are left over. Else give the right number."
        )

    @property
    def samples_before(self) -> float:
        """Samples of the batches before the running one, on this rank, those left out included."""
        return self.num_rows + self.num_dropped

    @property
    def positions_trained(self) -> int:
        """Samples trained, over all ranks, those with weight 0 included; after :meth:`collect`."""
        rows, _, passed, *_ = self._sums
        return rows or passed  # a module without the mixin tells nothing

    def full_steps(self, full_batches: int | float, num_batches: int | float) -> int:
        """Return how many samples would have been trained if nothing was left out; after :meth:`collect`.

        Args:
            full_batches: At most so many batches an epoch may have, by a limit, or the loader's length.
            num_batches: At most so many the running one may have.
        """
        _, dropped, passed, left_out, _ = self._sums
        came = self.positions_trained + dropped
        if self.batches_done >= num_batches:  # a limit ends a full epoch, too
            return came
        full = round(came * (passed + left_out) / passed) if passed else came + left_out
        most = full_batches * self.longest_batch * self.stream.num_replicas
        return max(came, min(full, int(most))) if 0 < most < math.inf else full

    @property
    def _sums(self) -> list[int]:
        """Losses, samples left out of batches, let pass and left out by the dataset, and recorded, over all ranks."""
        assert self._totals is not None  # noqa: S101  (narrowing: `collect` was called)
        return self._totals

    @property
    def kept_fraction(self) -> float:
        """Share of the samples that is selected, and was not left out of its batch."""
        rows, dropped, *_ = self._sums
        share = len(self.plan.order) / self.stream.num_samples if self.stream.num_samples else 1.0
        return share * (rows / (rows + dropped) if dropped else 1.0)

    def shared_state(self, full_batches: int | float) -> dict[str, Any]:
        """Return nothing: where a stream goes on is known to its loader, of each rank."""
        return {}

    def local_state(self) -> dict[str, Any]:
        """Return what only this rank knows of the epoch, for a checkpoint."""
        return {"log": self.log[:, :-1].cpu().clone(), "rows": self.num_rows, "dropped": self.num_dropped}

    def recorded(self, ranks: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return ids and losses ``(m,)``, on the CPU, that are in the ranks' logs: each what `local_state` returned."""
        losses, last = torch.full_like(ranks[0]["log"][0], ABSENT), torch.full_like(ranks[0]["log"][0], ABSENT)
        for local in ranks:  # of a sample on several ranks, the last step's, of the last rank: as in `_merged`
            log = local["log"]
            later = (log[-1] != ABSENT) & (log[-1] >= last)
            losses, last = torch.where(later, log[0], losses), torch.where(later, log[-1], last)
        ids = (losses != ABSENT).nonzero().squeeze(1)
        return ids, losses[ids]

    def continue_from(self, batches_done: int, num_dropped: int, local: dict[str, Any]) -> None:
        """Go on after ``batches_done`` batches; ``local`` is what this rank knew then."""
        self.batches_done, self.num_dropped = batches_done, local.get("dropped", num_dropped)
        self.num_rows, self.was_resumed = local.get("rows", 0), True
        if (log := local["log"]) is not None:
            self.log[:, :-1] = log.to(self.device)

    def move_to(self, device: torch.device) -> None:
        """Move log and weights to a device, between steps."""
        self.device = device
        self.log, self._seen = self.log.to(device), self._seen.to(device)
        self._weights = None if self._weights is None else self._weights.to(device)
        self._selected = None if self._selected is None else self._selected.to(device)
        self.__dict__.pop("_counts", None)


Running: TypeAlias = RunningEpoch | StreamEpoch
"""An epoch under way: of a plan, or of a stream."""
