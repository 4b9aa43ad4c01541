"""The score registry: Lightning's hooks, each of which calls the session that runs the epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune.core.checks import LoaderError, StateMismatchError, check_int
from lightning_prune.core.epoch import RunningEpoch
from lightning_prune.core.export import check_table_path, check_writable
from lightning_prune.core.method import Method
from lightning_prune.core.rng import make_generator
from lightning_prune.core.sampler import PlanBatchSampler
from lightning_prune.core.session import Session
from lightning_prune.core.step import StepRecord
from lightning_prune.core.stream import Running
from lightning_prune.core.table import SampleTable, changed_length
from lightning_prune.trainer import modules, parts, private, probe, streams
from lightning_prune.trainer.base import AS_IS, TrainerCallback
from lightning_prune.trainer.clock import Stopwatch
from lightning_prune.trainer.ending import OTHER_LOSS, closing_lines, idleness, is_made_of, log_arguments
from lightning_prune.trainer.mixin import WeightedLossMixin
from lightning_prune.trainer.schedules import Schedules
from lightning_prune.trainer.several import LoaderTable, SeveralLoaders


@final
class ScoreRegistry(SampleTable, TrainerCallback):
    """Keeps the per-sample state of a run. Attached automatically; list it yourself to set its arguments.

    State changes only at the end of an epoch and is then the same on every rank; so a selection is a function of that
    state, the seed and the epoch, and a resumed run derives the same one. Per-sample tensors live on the module's
    device. Without a pruning callback beside it, every epoch is full and losses are only recorded.

    Args:
        loader: Key (dict) or position (list) of the train DataLoader to prune, where there are several. A list of them:
            each is pruned by a copy of the method, with a table of its own, ``registry.tables[name]``, and the training
            step says whose losses it has, ``self.weighted_loss(losses, loader=name)``.
        save_rng: Save the states of the global random generators with each checkpoint and restore them on resume, so
            that dropout and augmentation go on as if uninterrupted. Nothing else ever touches them.
        dataset_id: Name of the training dataset, for example a version or a hash of its files. A resumed run with
            another name, or another dataset class, is warned that per-sample state may belong to other samples.
        debug_sync: Compare a hash of each epoch's selection and weights across DDP ranks, and stop the run where they
            differ. One more collective an epoch.
        num_samples: Number of samples of a training dataset that is a stream (an `IterableDataset`), whose batches then
            tell their ids, ``self.weighted_loss(losses, indices=ids)``. None: the dataset tells it.
        repeats: Whether a stream may yield a sample more than once in an epoch, as one that draws with replacement;
            else that is taken for a mistake in how it is shared among workers and processes.
        save_to: File for the per-sample table, written when ``fit`` ends, as :meth:`save` does: ``.npz``, or
            ``.parquet`` with the extra ``export``. None: none is written.
        sharded: Let each DDP rank keep the state of its own part of the samples only, ``registry.part``, for datasets
            whose state is too much for one process. ``losses``, ``counts`` and columns are then of that part, ids are
            positions in it, checkpoints have a folder beside them, and ``save_to`` is a file of each rank.

    Raises:
        TypeError: If ``num_samples`` is no int.
        ValueError: If it is below 1, or ``loader`` is a list of none, or of one twice, or ``sharded`` is combined with
            a list of loaders, a stream's ``num_samples`` or ``debug_sync``.

    Attributes:
        session: The run, which the hooks drive.
        clock: The time that this fit's training takes, without validation.

    Example:
        >>> import lightning.pytorch as L
        >>> from lightning_prune import InfoBatch
        >>> callbacks = [ScoreRegistry(loader="labelled"), InfoBatch()]
        >>> trainer = L.Trainer(callbacks=callbacks, accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        loader: str | int | list[str | int] | None = None,
        save_rng: bool = True,
        dataset_id: str | None = None,
        debug_sync: bool = False,
        num_samples: int | None = None,
        repeats: bool = False,
        save_to: str | PathLike[str] | None = None,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        given = {"loader": isinstance(loader, list), "num_samples": num_samples is not None, "debug_sync": debug_sync}
        if sharded and (others := [f"`{name}`" for name, is_given in given.items() if is_given]):
            raise ValueError(
                f"Expected `sharded=True` alone, but got it with {' and '.join(others)}: each rank knows a part of one "
                "map-style dataset only. Leave out one of them."
            )
        self.sharded = sharded
        self._parts_io: parts.PartsIO | None = None
        if num_samples is not None:
            check_int("num_samples", num_samples, low=1)
        self.stream_length = num_samples
        self.repeats = repeats
        self.loader = loader
        self._several: SeveralLoaders | None = None
        if isinstance(loader, list):
            if save_to is not None:
                raise ValueError(
                    f"Expected no `save_to` with several tables, but got {str(save_to)!r}. Save each when the run has "
                    "ended: `registry.tables[name].save(path)`."
                )
            self._several = SeveralLoaders(loader, dataset_id=dataset_id, debug_sync=debug_sync)
        self.save_rng = save_rng
        self.dataset_id = dataset_id
        self.debug_sync = debug_sync
        self.save_to = None if save_to is None else check_table_path(save_to, default=".npz")
        self.session = Session(self)
        self._picking: probe.PickingStep | None = None
        self._pending: dict[str, Any] | None = None
        self._begin_fit(None, None)

    def _begin_fit(self, trainer: Trainer | None, pl_module: LightningModule | None) -> None:
        self._trainer, self._module = trainer, pl_module
        self._schedules: Schedules | None = None
        self._schedule_state: list[int] | None = None
        self._left_alone: Trainer | None = None  # whose run is neither pruned nor recorded
        self._started = False  # between `on_train_start` and the end
        self._loader: private.PlannedLoader | streams.StreamLoader | None = None
        self._fresh_loader = False  # requested since the last epoch began
        self._first_epoch = True
        self._resumed = False
        self._begun: int | None = None  # epoch that is planned already
        self._late_batches: int | float | None = None  # length of the epoch, to be told at its first step
        self.clock = Stopwatch()
        self._steps_before = 0  # trained before this fit
        self._loss_is_used: bool | None = None  # whether the first step trains on the weighted loss; None: not known
        self._leaves: list[str] = []

    @property
    def step(self) -> StepRecord:
        """What the running step and the run exchange."""
        return self.session.step

    @property
    def tables(self) -> dict[str | int, LoaderTable]:
        """The tables of several loaders that are pruned, ``ScoreRegistry(loader=[...])``, by name; else none."""
        return {} if self._several is None else self._several.tables

    @property
    def takes_part(self) -> bool:
        """Whether the running fit is pruned, or its losses are recorded: not with ``overfit_batches``."""
        return self._trainer is not None

    @property
    def running(self) -> Running:
        """The running epoch.

        Raises:
            RuntimeError: If none is running.
        """
        return self.session.open_epoch

    @property
    def planned_loader(self) -> private.PlannedLoader | streams.StreamLoader:
        """The user's train loader, and its copy that draws from the plan.

        Raises:
            RuntimeError: If the fit loop has not requested it yet.
        """
        if self._loader is None:
            raise RuntimeError("Expected the train loader to be planned, but the fit loop has not requested it yet.")
        return self._loader

    @classmethod
    def of(cls, trainer: Trainer) -> ScoreRegistry:
        """Return the trainer's registry.

        Raises:
            RuntimeError: If it has none.
        """
        for callback in private.get_callbacks(trainer):
            if isinstance(callback, cls):
                return callback
        raise RuntimeError("Expected a `ScoreRegistry` among the trainer's callbacks, but there is none before `fit`.")

    @classmethod
    def attach(cls, trainer: Trainer, pl_module: LightningModule) -> ScoreRegistry:
        """Return the trainer's registry, first in its list of callbacks and set up for this fit; add one if needed."""
        callbacks = private.get_callbacks(trainer)
        found = [callback for callback in callbacks if isinstance(callback, ScoreRegistry)]
        registry = found[0] if found else cls()
        # First: bars and checkpoints then see this epoch's state. A new list: Lightning is iterating over the old one.
        private.set_callbacks(trainer, [registry, *(callback for callback in callbacks if callback is not registry)])
        registry.setup(trainer, pl_module, "fit")
        return registry

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and have every train loader that is requested pass through us."""
        if stage != "fit" or self._trainer is trainer or self._left_alone is trainer:
            return
        if overfit := private.overfits(trainer):
            self._begin_fit(None, None)
            self._left_alone = trainer
            rank_zero_warn(
                f"`Trainer(overfit_batches={overfit})` trains the same few batches over and over: this run is not "
                "pruned, and no losses are recorded. To prune a part of each epoch, use `limit_train_batches`."
            )
            return
        callbacks = private.get_callbacks(trainer)
        methods = [callback for callback in callbacks if isinstance(callback, Method)]
        if len(methods) > 1:
            raise MisconfigurationException(
                f"Expected one pruning method, but got {len(methods)}: {methods}. Keep one of them."
            )
        if (registries := sum(isinstance(callback, ScoreRegistry) for callback in callbacks)) > 1:
            raise MisconfigurationException(f"Expected one `ScoreRegistry` among the callbacks, but got {registries}.")
        method = methods[0] if methods else None
        private.check_trainer(trainer)
        modules.check_module(pl_module, method)
        if self.sharded:
            others = [callback for callback in callbacks if callback not in (self, method)]
            parts.check_sharded(trainer, method, others)
        if self.save_to is not None and trainer.is_global_zero:
            check_writable(self.save_to, what="per-sample table")
        self._begin_fit(trainer, pl_module)
        seed = 0 if method is None else method.resolved_seed
        self.session = Session(self, method, seed=seed, debug_sync=self.debug_sync)
        if isinstance(self.loader, str | int):
            self.session.step.loader = self.loader
        if self._several is not None:
            self._several.check(trainer, pl_module, method)
            self._several.begin_fit(method)
            self.session = self._several.first
        private.install_source(trainer, self._plan_loaders)
        if self.sharded:
            self._parts_io = parts.PartsIO(trainer.strategy.checkpoint_io, Path(trainer.default_root_dir))
            trainer.strategy.checkpoint_io = self._parts_io

    def _plan_loaders(self, loaders: Any) -> Any:
        """Return the user's loaders with a planned copy of the one to prune; called at each request for them."""
        trainer, session = self._trainer, self.session
        if trainer is None:
            return loaders
        if self._several is not None:
            return self._several.plan(trainer, loaders)
        assert not isinstance(self.loader, list)  # noqa: S101  (narrowing)
        combined, position = private.choose_loader(loaders, self.loader, streams=self.stream_length is not None)
        original = combined.flattened[position]
        if session.method is not None and session.method.picks_in_batch and len(combined.flattened) > 1:
            raise MisconfigurationException(
                f"Expected one train DataLoader, since {type(session.method).__name__} takes batches apart, but got "
                f"{len(combined.flattened)}. Use a method that selects once an epoch."
            )
        self._loader = self._plan_loader(trainer, original, alone=len(combined.flattened) == 1)
        if self._started and self._loader.num_samples != self.num_samples:
            self._grow(trainer, self._loader.num_samples)
        self._loader.batch_sampler.begins_again = private.begins_again(combined)
        self._loader.batch_sampler.is_alone = len(combined.flattened) == 1
        self._loader.states = private.loader_states(trainer)
        self._fresh_loader = True
        session.draw_from(self._loader.batch_sampler)
        session.dataset = [type(getattr(original, "dataset", original)).__name__, self.dataset_id]
        planned = self._loader.planned
        if loaders is original:
            return planned
        combined.flattened = [planned if i == position else leaf for i, leaf in enumerate(combined.flattened)]
        return combined

    def _plan_loader(
        self, trainer: Trainer, original: Any, *, alone: bool
    ) -> private.PlannedLoader | streams.StreamLoader:
        """Return a copy of a user's loader that draws what is selected."""
        session, rank, world_size = self.session, trainer.global_rank, trainer.world_size
        if not streams.is_stream(original):
            private.check_sharding(trainer, original)
            loader = private.PlannedLoader(original, seed=session.seed, rank=rank, world_size=world_size)
            if self.stream_length not in (None, loader.num_samples):
                raise MisconfigurationException(
                    f"Expected `ScoreRegistry(num_samples=...)` for a stream, but the dataset is map-style, has "
                    f"{loader.num_samples} samples, and got {self.stream_length}. Leave it out."
                )
            return loader
        if not alone:
            raise MisconfigurationException(
                "Expected a map-style dataset in the loader to prune, where there are several train DataLoaders, but "
                f"got the stream `{type(getattr(original, 'dataset', original)).__name__}`. Prune another of them."
            )
        method = session.method
        stream = streams.StreamLoader(
            original,
            num_samples=self.stream_length,
            method=method,
            seed=session.seed,
            rank=rank,
            world_size=world_size,
            repeats=self.repeats,
        )
        if self._module is not None:
            stream.check_module(self._module, method)
        return stream

    def _grow(self, trainer: Trainer, num_samples: int) -> None:
        """Go on with a dataset that was reloaded with another number of samples."""
        knowing = [c for c in private.get_callbacks(trainer) if not getattr(c, "takes_new_samples", True)]
        if knowing and num_samples > self.num_samples:
            raise MisconfigurationException(
                f"Expected the training dataset of {self.num_samples} samples that {type(knowing[0]).__name__} was set "
                f"up for, but got {num_samples} in epoch {trainer.current_epoch}: it cannot take in more in a run. "
                "Start a new run with all of them."
            )
        with _misconfigured():
            self.session.grow(num_samples)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse schedules that cannot be scaled."""
        if not self.takes_part:
            return
        if self.sharded:
            for callback in trainer.checkpoint_callbacks:
                parts.check_local(getattr(callback, "dirpath", None))
        self._schedules = Schedules(trainer, self.session)
        self._schedules.check(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allocate or restore the per-sample state; continue an interrupted epoch."""
        if not self.takes_part or self._start_several(trainer, pl_module):
            return
        loader, method = self.planned_loader, self.session.method
        if not loader.is_used_by(trainer):
            raise MisconfigurationException(
                "Expected the fit loop to draw from the planned loader, but something replaced it after `setup`. "
                "Strategies and callbacks that rebuild the train loader cannot be combined with pruning."
            )
        if method is not None:
            private.warn_unless_they_end_epochs(trainer, [loader.planned])
        if isinstance(pl_module, WeightedLossMixin):
            pl_module._pruning_step = self.step
            self.step.watched = method is not None and method.weighs_losses
        if method is not None and method.picks_in_batch:
            self._picking = probe.PickingStep(pl_module, self._pick)
        self._note_limits(trainer)
        self._started = True
        self._start_schedules()
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._restore(trainer, pl_module, state)
            self._continue(trainer, state)
        elif self._starts_anew:
            with _misconfigured():
                self.session.start(loader.num_samples, pl_module.device)
            if private.resumes_in_epoch(trainer):
                self._join(trainer)
        elif self.num_samples != loader.num_samples:
            raise MisconfigurationException(changed_length(self.num_samples, loader.num_samples))
        self._announce(trainer)

    def _announce(self, trainer: Trainer) -> None:
        """Log what the run is, and warn if it will prune nothing."""
        method, self._steps_before = self.session.method, self.trained_steps
        if method is None:
            return
        if method.log_metrics:
            log_arguments(trainer.loggers, method)
        if not _is_dev_run(trainer) and (told := idleness(method, self.max_epochs)) is not None:
            rank_zero_warn(told)

    def _start_several(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Begin a run in which several loaders are pruned, or go on with it; return whether it is one."""
        several = self._several
        if several is None:
            return False
        if isinstance(pl_module, WeightedLossMixin):
            pl_module._pruning_step = several.steps
        self._started = True
        self._start_schedules()
        state, self._pending = self._pending, None
        with _misconfigured():
            several.start(trainer, pl_module.device, state, save_rng=self.save_rng)
            if several.is_finished(trainer):
                if self._schedules is not None:
                    self._schedules.end_epoch()
                self._follow_last_batch(trainer, several.finish(trainer, save_rng=self.save_rng))
        several.note_limits(trainer)
        self.max_epochs = several.first.table.max_epochs
        self._announce(trainer)
        return True

    def _restore(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        """Take over a state, which may be of fewer samples where a run that reloads has come to an epoch's end."""
        if "loaders" in state:
            raise MisconfigurationException(
                "Expected the per-sample state of one loader, but the checkpoint is of a run that prunes the loaders "
                f"{list(state['loaders'])}. Resume with the same `ScoreRegistry(loader=...)`, or start a new run."
            )
        num_samples = self.planned_loader.num_samples
        grows = private.reloads(trainer) and not state["open"]
        before = min(state["num_samples"], num_samples) if grows else num_samples
        with _misconfigured():
            part = self.session.own_part(state["num_samples"], pl_module.device)
            state = parts.whole_state(state, part, sharded=self.sharded)
            self.session.restore(state, before, pl_module.device)
        if before < num_samples:
            self._grow(trainer, num_samples)
        self._resumed = True

    def _start_schedules(self) -> None:
        schedules = self._schedules
        if schedules is not None:
            schedules.start(None if self._pending is None else self._pending.get("schedule"))
            self.step.scheduler_calls, self.step.full_step = schedules.calls, schedules.full_step

    @property
    def _starts_anew(self) -> bool:
        """Whether the fit that begins has nothing to go on from."""
        return not self.session.table.has_begun or (self._trainer is not None and self._trainer.current_epoch == 0)

    def _join(self, trainer: Trainer) -> None:
        """Take part in a run that is resumed in the middle of an epoch that was none of ours."""
        if private.resumes_on_last_batch(trainer):  # Lightning enters the next epoch without its start hooks
            batches_done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            private.reload_if_due(trainer)
            self._begin_epoch(trainer)
            self._follow_last_batch(trainer, batches_done)
            return
        self._begun, self._first_epoch = trainer.current_epoch, False
        self.epoch = trainer.current_epoch + 1
        loader = self.planned_loader
        if loader.keeps_position:
            loader.skip(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
            private.iterate(trainer, keep_rng=True, states=loader.states)
        rank_zero_warn(
            f"The checkpoint was written in the middle of epoch {trainer.current_epoch} of a run without "
            "`ScoreRegistry` or a pruning callback. The rest of that epoch trains as without them; they take part from "
            f"epoch {self.epoch} on. A checkpoint of an epoch's end has no such rest."
        )

    def _note_limits(self, trainer: Trainer) -> None:
        max_epochs = trainer.max_epochs
        self.max_epochs = max_epochs if max_epochs is not None and max_epochs >= 0 else None
        self.max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
        self.global_step = trainer.global_step
        if self.shape is not None:
            limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
            self.shape = replace(self.shape, limit=limit, accumulate=accumulate)

    def _continue(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Go on where the state was saved: between epochs, in the middle of one, or on its last batch."""
        running = self.session.running
        if running is None:
            if private.resumes_in_epoch(trainer):
                self._join(trainer)
            self._restore_rng()
            return
        if isinstance(running, RunningEpoch) and running.begun is not None:
            self.session.full_batches = trainer.num_training_batches  # of the new batches
        self._fresh_loader = False
        if trainer.current_epoch == self.epoch:
            self._begun, self._first_epoch = self.epoch, False
            num_batches = self.session.num_batches = private.set_epoch_length(trainer)
            if isinstance(running, RunningEpoch):
                finished = running.batches_done >= num_batches  # then draw nothing: a limit would not stop it
                running.batch_sampler.skip = len(running.batch_sampler) if finished else running.batches_to_skip
            elif not self.planned_loader.keeps_position:
                rank_zero_warn(
                    f"The checkpoint was written in the middle of epoch {self.epoch} of a stream, whose loader cannot "
                    "go on there: as without pruning, the epoch goes on with the stream from its start, and what was "
                    "trained of it before is trained again. A loader with `load_state_dict`, such as torchdata's "
                    "`StatefulDataLoader`, goes on; a checkpoint of an epoch's end has no rest."
                )
            private.finish_batch_progress(trainer, running.batches_done)
            private.iterate(trainer, keep_rng=True, states=self.planned_loader.states)
            self._restore_rng()
            return
        # Written on the last batch: Lightning calls neither this epoch's end nor the next one's start.
        self.session.num_batches = running.batches_done
        if self._schedules is not None:
            self._schedules.end_epoch()
        self.global_step = trainer.global_step
        self.session.end_epoch()
        self._restore_rng()
        private.reload_if_due(trainer)
        self._begin_epoch(trainer)
        self._follow_last_batch(trainer, state["batches_done"])

    def _follow_last_batch(self, trainer: Trainer, batches_done: int) -> None:
        """Have the loop end an epoch of which ``batches_done`` batches were all, and go on with the one just begun."""
        private.start_epoch_progress(trainer)
        self._late_batches = trainer.num_training_batches
        trainer.fit_loop.max_batches = batches_done  # the loop compares the old epoch's progress with it first

    def _restore_rng(self) -> None:
        if self.save_rng:
            self.session.restore_rng()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select this epoch's samples and make the fit loop follow."""
        self.clock.run()
        if self._several is not None and self.takes_part:
            with _misconfigured():
                self._several.begin_epoch(trainer)
        elif self.takes_part and self._begun != trainer.current_epoch:  # else begun in on_train_start
            self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: Trainer) -> None:
        """Plan the coming epoch from the registry's state."""
        self._begun = trainer.current_epoch
        self._note_limits(trainer)
        if self._fresh_loader:  # the loop has just been set up with the loader's full length
            self.session.full_batches = trainer.num_training_batches
            self._fresh_loader = False
        with _misconfigured():
            running = self.session.begin_epoch(trainer.current_epoch)
        if running.plan.weights is not None and not isinstance(self._module, WeightedLossMixin):
            raise MisconfigurationException(
                f"Expected a module with `WeightedLossMixin`, since {type(self.session.method).__name__} weighs the "
                f"losses, but `{type(self._module).__name__}` does not have it. {modules.without_mixin(self._module)}"
            )
        self.session.num_batches = private.set_epoch_length(trainer)
        # A fit makes its first iterator before its first epoch starts. It will do for a full first epoch.
        if self._first_epoch and not private.will_iterate(trainer):
            is_full = self.epoch == 0 and self.selects_all and not self.session.batches.is_drawn and not self.sharded
            if self._resumed or not is_full:
                private.iterate(trainer, keep_rng=not self._resumed)
        self._first_epoch = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have the step's weights and log ready."""
        if self.session.running is None:  # the rest of an epoch that was none of ours
            return
        self.clock.run()
        if self._fresh_loader:  # a search has had it made anew in this epoch
            self._note_full_length(trainer)
        if self._late_batches is not None:
            private.set_max_batches(trainer, self._late_batches)
            self._late_batches = None
        if self._several is not None:
            self._several.begin_step(batch_idx)
        else:
            self.session.begin_step(batch_idx)
        if self._schedules is not None:
            self._schedules.before_step()

    def _note_full_length(self, trainer: Trainer) -> None:
        """Note how many batches of a new loader an epoch of all samples has, and have the loop follow this epoch."""
        batches = self.session.batches
        if isinstance(batches, PlanBatchSampler):
            plan, batches.sampler.plan = batches.sampler.plan, None
            self.session.full_batches = private.set_epoch_length(trainer)
            batches.sampler.plan = plan
        self.session.num_batches = private.set_epoch_length(trainer)
        self._fresh_loader = False

    def _pick(self, batch: Any, *args: Any) -> Any:
        """Return the part of the batch that is trained; called at the start of each step of a batch-level method."""
        trainer, module = self._fit
        self.global_step = trainer.global_step
        if not self.session.picks_now():
            return batch
        method = self.session.method
        probed = probe.probe(module, batch, *args, hook=method is not None and method.picks_by_losses)
        positions = self.session.pick(probed)
        return probe.take(module, batch, positions, self.running.batch_length)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the watch: validation is not saved."""
        self.clock.pause()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look, in the first step, whether the loss that is trained is made of the weighted one."""
        step = self.step
        if step.watched and step.active and step.loss is not None and not self._loss_is_used:
            is_used = is_made_of(loss, step.loss)
            if is_used or bool(step.loss.isfinite()):  # a step may do without a loss that is not
                self._loss_is_used = is_used

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy the step's losses into the epoch's log."""
        session, step = self.session, self.step
        if session.running is None:
            return
        if self._several is not None:
            self._several.end_step(pl_module, batch_idx, was_skipped=modules.is_skipped(pl_module, outputs))
            if self._schedules is not None:
                self._schedules.after_step(batch_idx)
            return
        if step.active and step.losses is None:  # else the collate function returned None, and no step was run
            if session.method is not None and not isinstance(pl_module, WeightedLossMixin):
                step.batch_loss = private.batch_loss(trainer, outputs)
                step.losses = session.method.missing_losses(step)
            modules.check_called(pl_module, step, outputs)
        session.end_step(batch_idx)
        if self._schedules is not None:
            self._schedules.after_step(batch_idx)
        step.active = False
        step.loss = None
        if self._loss_is_used is False and step.watched:
            rank_zero_warn(OTHER_LOSS)
        step.watched = step.watched and self._loss_is_used is None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the epoch's losses into the registry, the same on every rank, and log what was saved."""
        session = self.session
        if session.running is None:  # called once more after a resume from an epoch's end under `max_steps`
            return
        if session.running.batches_done == 0 and trainer.fit_loop.epoch_loop.restarting:
            raise MisconfigurationException(
                f"Expected epoch {trainer.current_epoch} to be trained, but Lightning drew no batch of it: after a "
                "search for a batch size at the start of an epoch other than the first, it takes that epoch and all "
                "later ones for done. Search before the run, or in epoch 0."
            )
        if self._schedules is not None:
            self._schedules.end_epoch()
        self.global_step = trainer.global_step  # for methods that look ahead
        if self._several is not None:
            self._end_several(trainer, pl_module, self._several)
            return
        metrics = session.end_epoch()
        self.clock.lap()
        if session.method is not None and session.method.log_metrics:
            for name in ("prune/kept_fraction", "prune/saved_fraction"):
                pl_module.log(name, metrics.pop(name), prog_bar=True, **AS_IS)
            pl_module.log_dict(metrics, **AS_IS)
            pl_module.log("prune/saved_seconds", self.seconds_saved, prog_bar=True, logger=False, **AS_IS)

    @property
    def seconds_saved(self) -> float:
        """Seconds of training saved, as if what was left out had taken as long as what this fit trained; a guess."""
        trained = self.trained_steps - self._steps_before
        return self.clock.total / trained * (self.full_steps - self.trained_steps) if trained else 0.0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the per-sample table; each rank its part, where it has only that."""
        if self.save_to is None or not self.takes_part or _is_dev_run(trainer):
            return
        path = self.save_to
        if self.sharded:
            path = path.with_stem(f"{path.stem}-{trainer.global_rank:05d}-of-{trainer.world_size:05d}")
        if trainer.is_global_zero or self.sharded:
            self.save(path)
            self._leaves = [f"per-sample table '{path}'"]

    @property
    def leaves(self) -> list[str]:
        """The per-sample table, once it is written."""
        return self._leaves

    def _close(self, trainer: Trainer) -> None:
        """Say what the run was, and what there is to see of it."""
        method = self.session.method
        method = None if method is not None and method.only_watches else method
        callbacks = [c for c in private.get_callbacks(trainer) if isinstance(c, TrainerCallback)]
        leaves = [words for callback in callbacks if callback is not self for words in callback.leaves]
        leaves += self.leaves
        if _is_dev_run(trainer) or self.full_steps == 0 or (method is None and not leaves):
            return
        for line in closing_lines(self, method, self.clock.total, self.seconds_saved, leaves):
            rank_zero_info(line)

    def _end_several(self, trainer: Trainer, pl_module: LightningModule, several: SeveralLoaders) -> None:
        """End the epoch of several loaders, and log what was saved of all."""
        for table in several.tables.values():
            table.global_step = trainer.global_step
        metrics, tables = dict(several.end_epoch()), several.tables.values()
        self.clock.lap()
        self.trained_steps = sum(table.trained_steps for table in tables)
        self.full_steps = sum(table.full_steps for table in tables)
        if several.first.method is not None and several.first.method.log_metrics:
            pl_module.log_dict({**metrics, "prune/saved_fraction": self.saved_fraction}, **AS_IS)

    def refresh_losses(self, indices: Tensor) -> Tensor:
        """Return the losses ``(k,)``, float32, of samples by id from a forward pass; for methods, at an epoch's end.

        Collective in a DDP run. The module is put into eval mode meanwhile, and nothing in the registry changes.
        """
        trainer, module = self._fit
        find = partial(
            probe.losses_of, trainer, module, seed=self._probe_seed, description="Refreshing skipped samples"
        )
        original = self.planned_loader.original
        return probe.losses_by_id(find, original, indices, rank=trainer.global_rank, world_size=trainer.world_size)

    def mean_loss(self, loader: DataLoader[Any]) -> Tensor:
        """Return the mean of a loader's finite losses, a 0-d float64 tensor, as :meth:`refresh_losses` finds them."""
        return probe.mean_loss(*self._fit, loader, seed=self._probe_seed)

    @property
    def _fit(self) -> tuple[Trainer, LightningModule]:
        if self._trainer is None or self._module is None:
            raise RuntimeError("Expected a running fit, but there is none.")
        return self._trainer, self._module

    @property
    def _probe_seed(self) -> int:
        return make_generator(self.session.seed, self.epoch, "probe").initial_seed()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain tensors and numbers; called on every rank, and collective in a DDP run."""
        if self._pending is not None or not self.session.table.has_begun:
            return self._pending or {}
        if self._trainer is not None and not self._started and self._starts_anew:
            return {}  # what there is belongs to an earlier fit
        alone = self._trainer is None or self._trainer.interrupted  # after an exception others may be gone
        if self._several is not None:
            state = self._several.state_dict(save_rng=self.save_rng, alone=alone)
        else:
            state = self.session.state_dict(save_rng=self.save_rng, alone=alone)
        if self.sharded:
            io = self._parts_io
            state = parts.without_parts(state) if alone or io is None else io.stage(state, self.part)
        if self._schedules is not None:
            self._schedule_state = self._schedules.state()
        return {**state, "schedule": self._schedule_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: schedules must still see full epochs when they are configured.

        In a run that goes on, as after a search for a learning rate, go back to it at once.
        """
        trainer = self._trainer
        if not self._started or trainer is None:
            self._pending = dict(state_dict)
            return
        if self._several is not None:
            raise MisconfigurationException(
                "Expected no state to be loaded while a run goes on that prunes several loaders, as a search for a "
                "learning rate or a batch size does. Search before the run."
            )
        if self.sharded:
            raise MisconfigurationException(
                "Expected no state to be loaded while a run with `ScoreRegistry(sharded=True)` goes on, as a search "
                "for a learning rate or a batch size does. Search before the run."
            )
        running = self.session.running
        with _misconfigured():
            self.session.rewind(state_dict)
        if self._schedules is not None:
            self._schedules.start(state_dict.get("schedule"))
        if self.session.running is not running:  # another plan than the live iterator's
            self.session.num_batches = private.set_epoch_length(trainer)
            private.iterate(trainer, keep_rng=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the trainer, the loader and the module as they were; the state stays, for a last checkpoint."""
        self._uninstall(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer, the loader and the module as they were."""
        if stage == "fit":
            if self.takes_part:
                self._close(trainer)
            self._uninstall(trainer, pl_module)

    def _uninstall(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step.active, self.step.scheduler_calls, self.step.full_step = False, None, None
        if self._schedules is not None:  # which a last checkpoint may still ask for
            self._schedule_state, self._schedules = self._schedules.state(), None
        pl_module.__dict__.pop("_pruning_step", None)
        if self._picking is not None:
            self._picking.uninstall()
            self._picking = None
        private.uninstall_source(trainer)
        if self._parts_io is not None:
            trainer.strategy.checkpoint_io = self._parts_io.inner
            if trainer.is_global_zero:
                self._parts_io.discard()
            self._parts_io = None
        if self._loader is not None:
            self._loader.restore(trainer)
        if self._several is not None:
            self._several.uninstall(trainer)
        self._trainer = self._module = self._loader = self._left_alone = None
        self._started = False


def _is_dev_run(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


@contextmanager
def _misconfigured() -> Iterator[None]:
    """Turn the core's refusals into the exception that users of a Trainer expect."""
    try:
        yield
    except (LoaderError, StateMismatchError) as error:
        raise MisconfigurationException(str(error)) from error
