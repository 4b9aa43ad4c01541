"""The timeline of a pruned run as plain calls: epochs, steps, state. Whoever trains makes them; see `Session`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from lightning_prune.core import checkpoint
from lightning_prune.core.begun import Begun
from lightning_prune.core.checks import LoaderError, StateMismatchError, warn_on_first_rank
from lightning_prune.core.epoch import EpochRecord, RunningEpoch, check_same_on_all_ranks
from lightning_prune.core.method import Method
from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.rng import make_generator, restore_rng_state
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.shape import EpochShape
from lightning_prune.core.stats import finite_mean
from lightning_prune.core.step import StepRecord, wrong_length
from lightning_prune.core.stream import Running, Stream, StreamEpoch
from lightning_prune.core.table import SampleTable, changed_length

Observer = Callable[[EpochRecord, dict[str, float | Tensor]], None]


@final
class Session:
    """Runs a method's epochs.

    Calls come in this order, ``batch_idx`` counting from 0 in each epoch::

        session.draw_from(batch_sampler)
        session.start(num_samples, device)           # or session.restore(state, num_samples, device)
        session.begin_epoch()                        # selects; the sampler now yields the epoch's batches
        session.begin_step(0)                        # weights are at hand
        ... weighted_loss(session.step, losses) ...
        session.end_step(0)                          # losses are in the epoch's log
        session.end_epoch()                          # losses are in the table, the same on every rank

    State changes only at the end of an epoch and is then the same on every rank; so a selection is a function of that
    state, the seed and the epoch, and a restored run derives the same one. A step computes and communicates nothing.

    Args:
        table: The per-sample state, which is handed to the method as its registry.
        method: The method. None: every epoch is full, and losses are only recorded.
        seed: Seed of the draws, where the method has none of its own.
        debug_sync: Compare a hash of each epoch's selection across ranks, and raise where they differ.

    Attributes:
        step: What the running step and the session exchange.
        running: The running epoch, or None.
        full_batches: Batches that an epoch of all samples has, as far as they are trained; infinite if it has no end.
        num_batches: Batches that the running epoch is to have, likewise; one that ends before is counted by its share.
        in_step: Whether a step is running, be it one that the loader has no batch for.
        dataset: What identifies the dataset beside its length: its class and the user's name for it.
        observers: Called at each epoch's end with its record and what is logged of it; the table is that of the end.
    """

    def __init__(
        self, table: SampleTable, method: Method | None = None, *, seed: int = 0, debug_sync: bool = False
    ) -> None:
        self.table = table
        self.method = method
        self.seed = seed
        self.debug_sync = debug_sync
        self.step = StepRecord(table)
        self.running: Running | None = None
        self.full_batches: int | float = 0
        self.num_batches: int | float = 0
        self.in_step = False
        self.dataset: list[str | None] = [None, None]
        self.observers: list[Observer] = []
        self._batches: PlanBatchSampler | Stream | None = None
        self._rng: dict[str, Any] | None = None

    @property
    def batches(self) -> PlanBatchSampler | Stream:
        """What the loader draws from.

        Raises:
            RuntimeError: Before :meth:`draw_from`.
        """
        if self._batches is None:
            raise RuntimeError("Expected the train loader to be planned, but it has not been requested yet.")
        return self._batches

    @property
    def _shards(self) -> PlanSampler | Stream:
        """What knows how the data is shared among the processes."""
        batches = self.batches
        return batches if isinstance(batches, Stream) else batches.sampler

    @property
    def rank(self) -> int:
        """This process's rank; 0 before a loader is planned."""
        return 0 if self._batches is None else self._shards.rank

    @property
    def world_size(self) -> int:
        """Number of processes; 1 before a loader is planned."""
        return 1 if self._batches is None else self._shards.num_replicas

    @property
    def open_epoch(self) -> Running:
        """The running epoch.

        Raises:
            RuntimeError: If none is running.
        """
        if self.running is None:
            raise RuntimeError("Expected an epoch to be running, but none is.")
        return self.running

    def draw_from(self, batches: PlanBatchSampler | Stream) -> None:
        """Plan the epochs for a loader that draws from ``batches``; its full length is that of an epoch of all."""
        self._batches = batches
        self.full_batches = batches.full_length
        self.table.shape = self._shape_of(batches, self.table.shape)
        if self.table.sharded and isinstance(batches, PlanBatchSampler):
            batches.sampler.shared = True
            batches.sampler.part = self.table.part if self.table.num_samples == batches.sampler.total else None
        if self.running is not None:  # a search has had the loader made anew at an epoch's start
            self._plan(self.table.selection)

    @staticmethod
    def _shape_of(batches: PlanBatchSampler | Stream, before: EpochShape | None) -> EpochShape | None:
        """Return what an epoch trains, with the limits that are known already; None: of a stream of unknown length."""
        if isinstance(batches, Stream):
            n, size = batches.num_samples, batches.batch_size or 1
            shape = EpochShape(n, n, size, batches.num_replicas, drops=bool(batches.filters)) if n else None
        else:
            sampler = batches.sampler
            size = batches.batch_size or -(-sampler.total // (batches.full_length * sampler.num_replicas))
            shape = EpochShape(sampler.total, batches.drawn, size, sampler.num_replicas, batches.drop_last)
        if shape is None or before is None:
            return shape
        return replace(shape, limit=before.limit, accumulate=before.accumulate)

    def own_part(self, num_samples: int, device: torch.device | str) -> Part:
        """Return which samples this process keeps the state of, and have the loader go by it.

        Raises:
            LoaderError: If the state is to be shared, and the loader's order cannot be.
        """
        if not self.table.sharded:
            return Part.whole(num_samples)
        batches = self.batches
        if isinstance(batches, Stream) or batches.is_drawn or not batches.is_alone:
            raise LoaderError(
                "Expected one loader of a map-style dataset that shuffles or goes in order, with "
                "`ScoreRegistry(sharded=True)`, but got one with a sampler or a batch sampler of yours, a stream, or "
                "one of several. Use `DataLoader(dataset, shuffle=True)`, or leave out `sharded=True`."
            )
        try:
            part = Part.of(num_samples, self.rank, self.world_size, device)
        except ValueError as error:
            raise LoaderError(str(error)) from error
        batches.sampler.part = part
        return part

    def start(self, num_samples: int, device: torch.device | str) -> None:
        """Begin a run of which nothing is known yet."""
        self.table.allocate(num_samples, device, self.own_part(num_samples, device))
        self.running = None
        if self.method is not None:
            self.method.setup_columns(self.table)

    def grow(self, num_samples: int) -> None:
        """Take in samples that were appended to the dataset, between epochs; the columns of the method grow along.

        Raises:
            StateMismatchError: If an epoch is running, or there are fewer samples than before.
        """
        before = self.table.num_samples
        if self.running is not None or self.table.sharded:  # where the parts would be others
            raise StateMismatchError(changed_length(before, num_samples))
        self.table.grow(num_samples)
        if self.step.first_time("grow"):
            warn_on_first_rank(
                f"The training dataset has grown from {before} to {num_samples} samples in the run. Ids below {before} "
                "are taken for the samples that they were, and the others are new ones. If it is another dataset, or "
                "in another order, start a new run.",
                self.rank,
            )

    # Epochs

    def begin_epoch(self, epoch: int | None = None) -> Running:
        """Select the samples of an epoch and plan their visit; None: of the one after that which ended last."""
        self.table.epoch = self.table.epoch if epoch is None else epoch
        return self._plan()

    def _plan(self, selection: Selection | None = None) -> Running:
        table, batches = self.table, self.batches
        if selection is None:
            if table.sharded and isinstance(batches, PlanBatchSampler):
                batches.let_go()
                table.let_go()
            selection = self._select()
        table.take_selection(selection)
        if table.sharded and isinstance(batches, PlanBatchSampler):
            del selection  # 8 bytes a sample: the table has the mask
            table.plan = batches.sampler.make_shared_plan(table.own_selected, table.own_weights, table.epoch)
        else:
            table.plan = batches.make_plan(selection, table.epoch)
            del selection  # 12 bytes a sample, which the log can have
        return self._run(table.plan)

    def _run(self, plan: EpochPlan, begun: Begun | None = None) -> Running:
        """Begin the planned epoch, or the rest of it."""
        table, method, batches = self.table, self.method, self.batches
        names = () if method is None else method.record_names
        weighs, device = method is not None and method.weighs_losses, table.losses.device
        if isinstance(batches, Stream):
            selected = None if table.selects_all else table.selected
            self.running = running = batches.start(plan, names, selected, device, weighs=weighs)
            if running.leaves_out and self.step.first_time("leaves_out"):
                warn_on_first_rank(
                    "Pruning saves no steps: of this stream, samples that are not selected are still read and trained "
                    "on with weight 0. `lightning_prune.data.PrunedStream(dataset, key=...)` drops them within the "
                    "dataset, before they are decoded or collated.",
                    self.rank,
                )
        else:
            self.running = RunningEpoch(plan, batches, names, device, weighs=weighs, begun=begun)
        self.step.running = self.running
        self.num_batches = batches.full_length if isinstance(batches, Stream) else len(batches)
        return self.running

    def _select(self) -> Selection:
        """Derive the epoch's selection: a pure function of the state at its start."""
        table, method = self.table, self.method
        part = table.part
        if method is None or table.epoch < method.warmup_epochs or table.num_samples == 0:
            return Selection.all(len(part))
        selection = method.select(table, table.epoch, make_generator(self.seed, table.epoch, "select"))
        if not isinstance(selection, Selection):
            raise TypeError(
                f"Expected `{type(method).__name__}.select` to return a Selection, but got {type(selection).__name__}."
            )
        total = part.sum(len(selection))
        selection.check(len(part), total)
        if self.debug_sync and self.world_size > 1:
            check_same_on_all_ranks(selection, table.epoch, table.losses.device)
        weights = selection.weights
        if total == part.total and weights is not None and not part.any(bool((weights != 1).any())):
            return replace(selection, weights=None)
        return selection

    def end_epoch(self) -> dict[str, float | Tensor]:
        """Bring the epoch's losses into the table: one collective, one scatter. Return what to log."""
        table, method, running, part = self.table, self.method, self.open_epoch, self.table.part
        record, (own_losses, own_nonfinite) = self._take_in(running)
        table.count_selected()
        if isinstance(running, StreamEpoch) and table.max_steps is None and table.selects_all:
            told = running.told_of_missing(self.num_batches)
            if told is not None and self.step.first_time("missing"):
                warn_on_first_rank(told, self.rank)
        num_nonfinite = part.sum(own_nonfinite)
        if num_nonfinite:
            num_losses = part.sum(own_losses)
            warn_on_first_rank(
                f"{num_nonfinite} of {num_losses} losses were NaN or infinite in epoch {table.epoch}. "
                "These samples stay in with weight 1 and are left out of every mean.",
                self.rank,
            )
        table.trained_steps += running.positions_trained
        table.full_steps += running.full_steps(self.full_batches, self.num_batches)
        metrics: dict[str, float | Tensor] = {
            "prune/kept_fraction": running.kept_fraction,
            "prune/saved_fraction": table.saved_fraction,
            "prune/score_mean": finite_mean(table.losses, part).float() if table.num_samples else math.nan,
            "prune/nonfinite": float(num_nonfinite),
        }
        if method is not None:
            if record is not None:
                method.on_epoch_recorded(table, record)
            metrics |= {f"prune/{name}": value for name, value in method.metrics(table).items()}
        for observe in self.observers:
            assert record is not None  # noqa: S101  (narrowing: someone asks for it)
            observe(record, metrics)
        self.running = self.step.running = None
        table.epoch += 1
        return metrics

    def _take_in(self, running: Running) -> tuple[EpochRecord | None, tuple[int, int]]:
        """Put the epoch's losses into the table.

        Return the record, or None where processes share the state and no one asks for it; and how many losses this one
        has put in, and how many of them are not finite.
        """
        table, method = self.table, self.method
        asks = method is not None and type(method).on_epoch_recorded is not Method.on_epoch_recorded
        if isinstance(running, RunningEpoch) and running.plan.part is not None and not (asks or self.observers):
            brought = running.shared_log().put_into(table.losses, table.unanswered)
            if table.unanswered is not None or table.part.any(len(brought.silent) > 0):
                table.note_unanswered(brought.silent, brought.answered)
            return None, (brought.num_losses, brought.num_nonfinite)
        record = running.collect()
        table.losses.scatter_(0, record.indices, record.losses)
        missing = record.recorded is not None and running.num_dropped == 0  # samples left out of batches were not asked
        if missing or table.unanswered is not None:
            asked = running.asked.to(record.indices) if record.asked is None else record.asked.to(record.indices)
            table.note_unanswered(asked if missing else asked[:0], record.indices)
        return record, (len(record.losses), record.num_nonfinite)

    @property
    def is_endless(self) -> bool:
        """Whether the running epoch ends with the run only, as beside an infinite loader."""
        return self.num_batches == math.inf

    # Steps

    def begin_step(self, batch_idx: int) -> None:
        """Have the step's weights and log ready: slices of the epoch's, nothing is computed or copied.

        A step that the loader has no batch for is one without losses, as outside a run.
        """
        step, running = self.step, self.open_epoch
        step.clear()
        self.in_step, step.active = True, not running.has_ended(batch_idx)
        step.weights = running.begin_step(batch_idx) if step.active else None

    def picks_now(self) -> bool:
        """Return whether the method wants to pick among the samples of the running step's batch."""
        method, running = self.method, self.running
        if method is None or running is None or not method.picks_in_batch or not self.step.active:
            return False
        epoch = self.table.epoch
        return epoch >= method.warmup_epochs and method.picks_now(self.table, epoch, running.batches_done)

    def pick(self, probed: StepRecord) -> Tensor:
        """Let the method pick by what a forward pass found; return the positions ``(k,)`` that the step trains.

        Args:
            probed: What ``weighted_loss`` was given for the whole batch.

        Raises:
            ValueError: If there are not as many losses as samples in the batch.
        """
        method, running = self.method, self.open_epoch
        assert method is not None  # noqa: S101  (narrowing: `picks_now` said so)
        num_losses = 0 if probed.losses is None else len(probed.losses)
        if probed.losses is None or num_losses != running.expect(num_losses, probed.given_indices):
            raise ValueError(wrong_length(num_losses, running.batch_length, owner=probed.owner))
        probed.registry, probed.running = self.table, running
        purpose = f"pick/{running.batches_done}/{self.rank}"
        positions = method.pick(probed, make_generator(self.seed, self.table.epoch, purpose))
        self.step.weights = running.narrow(positions)
        return positions

    def end_step(self, batch_idx: int) -> None:
        """Copy the step's losses, if there are any, into the epoch's log; a second time, nothing changes.

        A batch that no step was begun for is counted as visited.
        """
        step, method, running = self.step, self.method, self.open_epoch
        self.in_step = False
        running.end_step(batch_idx, trained=step.active)
        if step.active and step.losses is not None:
            running.write(step, {} if method is None or not running.record_names else method.per_sample(step))

    def move_to(self, device: torch.device) -> None:
        """Move the per-sample state and the running epoch to a device, between steps."""
        self.table.move_to(device)
        if self.table.sharded:
            self.own_part(self.table.num_samples, device)
        if self.running is not None:
            self.running.move_to(device)

    # State

    def state_dict(self, *, save_rng: bool = True, alone: bool = False) -> dict[str, Any]:
        """Return the state as plain tensors and numbers; where each process keeps a part of the samples, of its part.

        Args:
            save_rng: Put in the states of the global random generators.
            alone: The other ranks do not take part, for example after an exception. Else this is collective. Where each
                process keeps a part of the samples, the open epoch is then left out.
        """
        if self.method is not None and self.table.num_samples:
            self.method.before_save(self.table)
        running = None if alone and self.table.sharded else self.running  # of which it takes all to tell
        local = checkpoint.local_part(running, save_rng=save_rng)
        ranks = (
            [local]
            if alone or self.world_size == 1 or self.table.sharded
            else checkpoint.gather(local, self.world_size)
        )
        return checkpoint.pack(
            self.table,
            running,
            ranks,
            method=None if self.method is None else self.method.keeps_as,
            seed=self.seed,
            dataset=self.dataset,
            full_batches=self.full_batches,
        )

    def restore(self, state: dict[str, Any], num_samples: int, device: torch.device | str) -> None:
        """Take over a state, in place of :meth:`start`. An epoch that was open then is :attr:`running` again.

        Raises:
            StateMismatchError: If the state is of another run; the message says what differs.
        """
        own = None if self.method is None else self.method.keeps_as
        if (method := state.get("method", own)) != own and (state.get("columns") or state.get("state")):
            warn_on_first_rank(
                f"The checkpoint is of a run with {method}, but the run is resumed with {own}. Losses and counts go "
                f"on; what {method} kept of its own is dropped.",
                self.rank,
            )
        device = torch.device(device)
        part = self.own_part(num_samples, device)
        checkpoint.unpack(checkpoint.without_method(state, own), self.table, num_samples, device, part)
        if (before := state.get("dataset")) not in (None, self.dataset):
            warn_on_first_rank(
                f"The checkpoint's per-sample state belongs to the dataset {before} (class, dataset_id), but the run "
                f"is resumed with {self.dataset}. If its samples are others, or in another order, start a new run.",
                self.rank,
            )
        if self.method is None or self.method.seed is None:
            self.seed = self._shards.seed = state["seed"]
        self.running = None
        if self.method is not None:
            self.method.setup_columns(self.table)
        self._rng = checkpoint.part_of(state, self.rank)["rng"]
        if state["open"]:
            everything = checkpoint.selects_all(state)
            running = self._plan(Selection.all(len(part)) if everything else None)
            begun = checkpoint.begun_elsewhere(state, running)
            if begun is None:
                self.full_batches = state["full_batches"]
            else:
                running = self._run(running.plan, begun)
            checkpoint.unpack_open(state, self.table, running, self.rank)

    def rewind(self, state: dict[str, Any]) -> None:
        """Go back to a state while a run goes on, as after a search; the random generators are left as they are.

        Raises:
            StateMismatchError: If the running epoch, or that of the state, is under way.
        """
        running, epoch = self.running, self.table.epoch
        done = [0 if running is None else running.batches_done, state["batches_done"] if state["open"] else 0]
        if any(done) or self.step.active:
            raise StateMismatchError(
                "Expected to go back to a state at an epoch's start or end, but "
                + (f"{done[0]} batches of epoch {epoch} are trained" if done[0] or self.step.active else "")
                + (" and " if all(done) else "")
                + (f"the state is of the middle of epoch {state['epoch']}" if done[1] else "")
                + ": the losses of that part would be lost. Search for a learning rate or a batch size before the run, "
                "or in `on_train_epoch_start`."
            )
        selection = self.table.selection
        self.restore({**state, "open": False}, self.table.num_samples, self.table.losses.device)
        self._rng = None
        if running is None or selection is None:
            return
        self.table.epoch = epoch
        if state["open"] and state["epoch"] == epoch and state["plan"] == running.digest:
            self.running, self.table.plan = running, running.plan
            self.table.take_selection(selection)
        else:
            self._plan()

    def restore_rng(self) -> None:
        """Set the global random generators to what the restored state holds; only once, and last of all."""
        rng, self._rng = self._rng, None
        if rng is not None:
            restore_rng_state(rng)
