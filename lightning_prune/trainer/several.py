"""Several train loaders that are pruned, each with a table of its own: what `ScoreRegistry(loader=[...])` runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.epoch import RunningEpoch
from lightning_prune.core.method import Method
from lightning_prune.core.rng import make_generator
from lightning_prune.core.session import Session
from lightning_prune.core.step import Steps
from lightning_prune.core.table import SampleTable
from lightning_prune.trainer import private, streams
from lightning_prune.trainer.base import TrainerCallback
from lightning_prune.trainer.mixin import WeightedLossMixin

Name = str | int
"""Key (dict) or position (list) of a train loader."""


@final
class LoaderTable(SampleTable):
    """What a run knows of each sample of one of several loaders."""

    def refresh_losses(self, indices: Tensor) -> NoReturn:
        """Refuse: methods that ask for it are refused before."""
        raise RuntimeError("Expected one train loader to refresh losses of, but there are several.")

    def mean_loss(self, loader: DataLoader[Any]) -> NoReturn:
        """Refuse: methods that ask for it are refused before."""
        raise RuntimeError("Expected one train loader, but there are several.")


@final
class SeveralLoaders:
    """Runs a session for each of several loaders; their epochs begin and end together.

    Each has its own copy of the method, its own table, and its own draws: the first one's are those of a run in which
    it is the only one pruned.

    Args:
        names: Keys or positions of the loaders.
        dataset_id: What the user calls the datasets.
        debug_sync: Compare selections across ranks.

    Attributes:
        tables: The per-sample state, by the loader's name.
        sessions: The runs that keep it.
        steps: What their running steps exchange with the training step.

    Raises:
        ValueError: If there are no names, or one is there twice.
    """

    def __init__(self, names: Sequence[Name], *, dataset_id: str | None, debug_sync: bool) -> None:
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"Expected `loader` to list the loaders to prune, at least one and each once, but got {list(names)}."
            )
        self.names = list(names)
        self.dataset_id = dataset_id
        self.debug_sync = debug_sync
        self.tables = {name: LoaderTable() for name in names}
        self.sessions: dict[Name, Session] = {}
        self.steps = Steps({})
        self._loaders: dict[Name, private.PlannedLoader] = {}
        self._resumed = self._fresh = False
        self._begun: int | None = None
        self.begin_fit(None)

    def begin_fit(self, method: Method | None) -> None:
        """Make the runs of a fit anew; what the tables know stays, for a fit that goes on."""
        self.sessions = {}
        for position, (name, table) in enumerate(self.tables.items()):
            seed = 0 if method is None else method.resolved_seed
            if position > 0:  # else loaders of one length would be shuffled alike, and always meet in pairs
                seed = make_generator(seed, position, "loader").initial_seed()
            own = copy.deepcopy(method)
            self.sessions[name] = Session(table, own, seed=seed, debug_sync=self.debug_sync)
            self.sessions[name].step.loader = name
        self.steps = Steps({name: session.step for name, session in self.sessions.items()})
        self._loaders = {}
        self._resumed, self._fresh, self._begun = False, False, None

    @property
    def first(self) -> Session:
        """The run of the loader that is named first."""
        return next(iter(self.sessions.values()))

    def check(self, trainer: Trainer, pl_module: LightningModule, method: Method | None) -> None:
        """Refuse what cannot work with several tables.

        Raises:
            MisconfigurationException: The message says what to write.
        """
        loaders = f"`ScoreRegistry(loader={self.names})`"
        others = [c for c in private.get_callbacks(trainer) if _reads_a_table(c)]
        if others:
            raise MisconfigurationException(
                f"Expected no callback beside {loaders} that reads the losses and counts of one loader, but got "
                f"{type(others[0]).__name__}. Leave it out, or prune one loader."
            )
        if private.reloads(trainer):
            raise MisconfigurationException(
                f"Expected loaders that stay the same in a run, with {loaders}, but got "
                "`reload_dataloaders_every_n_epochs`. Prune one loader, or do not reload."
            )
        reason = None if method is None else _reason_against(method, isinstance(pl_module, WeightedLossMixin))
        if reason is not None:
            raise MisconfigurationException(
                f"Expected a method that can prune several loaders, each with a table of its own, but "
                f"{type(method).__name__} {reason}. Use another, or name one loader."
            )

    def plan(self, trainer: Trainer, loaders: Any) -> Any:
        """Return the user's loaders, with a planned copy of each that is pruned."""
        for name, session in self.sessions.items():
            combined, position = private.choose_loader(loaders, name)
            original = combined.flattened[position]
            if streams.is_stream(original):
                raise MisconfigurationException(
                    f"Expected map-style datasets in the loaders to prune, where there are several, but {name!r} has "
                    f"the stream `{type(original.dataset).__name__}`. Leave it out."
                )
            private.check_sharding(trainer, original)
            loader = private.PlannedLoader(
                original, seed=session.seed, rank=trainer.global_rank, world_size=trainer.world_size
            )
            loader.batch_sampler.begins_again = private.begins_again(combined)
            loader.batch_sampler.is_alone = False
            loader.states = private.loader_states(trainer)
            session.draw_from(loader.batch_sampler)
            session.dataset = [type(original.dataset).__name__, self.dataset_id]
            self._loaders[name] = loader
            combined.flattened = [
                loader.planned if i == position else leaf for i, leaf in enumerate(combined.flattened)
            ]
            loaders = combined
        self._fresh = True
        return loaders

    def start(self, trainer: Trainer, device: Any, state: dict[str, Any] | None, *, save_rng: bool) -> None:
        """Begin a run, or go on where a state was taken, but for an epoch of which every batch was trained.

        Raises:
            MisconfigurationException: If another loader took the place of one of ours.
            StateMismatchError: If the state is of another run.
        """
        if not all(loader.is_used_by(trainer) for loader in self._loaders.values()):
            raise MisconfigurationException(
                "Expected the fit loop to draw from the planned loaders, but something replaced one after `setup`. "
                "Strategies and callbacks that rebuild the train loader cannot be combined with pruning."
            )
        if self.first.method is not None:
            private.warn_unless_they_end_epochs(trainer, [loader.planned for loader in self._loaders.values()])
        self.note_limits(trainer)
        if state is not None:
            self._restore(state, device)
        if not self.is_running and private.resumes_in_epoch(trainer):
            raise StateMismatchError(
                f"Expected a checkpoint of a run that prunes the loaders {self.names}, where it was written in the "
                f"middle of an epoch, but this one of epoch {trainer.current_epoch} is not. Resume from an epoch's end."
            )
        if state is not None:
            if self.is_running and self.first.table.epoch == trainer.current_epoch:
                self._go_on(trainer)
            if save_rng and not self.is_finished(trainer):
                self.first.restore_rng()
        elif trainer.current_epoch == 0 or not all(table.has_begun for table in self.tables.values()):
            for name, session in self.sessions.items():
                session.start(self._loaders[name].num_samples, device)

    def _restore(self, state: dict[str, Any], device: Any) -> None:
        """Go on between two epochs."""
        states = state.get("loaders")
        if states is None or list(states) != self.names:
            before = "one loader" if states is None else f"the loaders {list(states)}"
            raise StateMismatchError(
                f"Expected the checkpoint's per-sample state of the loaders {self.names}, but it is of {before}. "
                "Resume with the same `ScoreRegistry(loader=...)`, or start a new run."
            )
        for name, session in self.sessions.items():
            session.restore(states[name], self._loaders[name].num_samples, device)
            self._fresh = self._fresh and not states[name]["open"]  # which knows the full length
        self._resumed = True

    def _go_on(self, trainer: Trainer) -> None:
        """Go on in the middle of an epoch."""
        self._begun = trainer.current_epoch
        num_batches = private.set_epoch_length(trainer)
        for name, session in self.sessions.items():
            session.num_batches, running = num_batches, session.open_epoch
            assert isinstance(running, RunningEpoch)  # noqa: S101  (narrowing: streams are refused)
            sampler = self._loaders[name].batch_sampler
            finished = running.batches_done >= num_batches  # then draw nothing: a limit would not stop it
            sampler.skip = len(sampler) if finished else running.batches_to_skip
        private.finish_batch_progress(trainer, self.first.open_epoch.batches_done)
        private.iterate(trainer, keep_rng=True, states=next(iter(self._loaders.values())).states)

    def is_finished(self, trainer: Trainer) -> bool:
        """Return whether a state was taken on an epoch's last batch: Lightning then enters the next one."""
        return self.is_running and self.first.table.epoch != trainer.current_epoch

    def finish(self, trainer: Trainer, *, save_rng: bool) -> int:
        """End the epoch of such a state, and begin the next one; return how many batches it had."""
        batches_done = self.first.open_epoch.batches_done
        for session in self.sessions.values():
            session.num_batches = batches_done
            session.end_epoch()
        if save_rng:
            self.first.restore_rng()
        self.begin_epoch(trainer)
        return batches_done

    def note_limits(self, trainer: Trainer) -> None:
        """Tell the tables how long the run is."""
        for table in self.tables.values():
            table.max_epochs = trainer.max_epochs if (trainer.max_epochs or -1) >= 0 else None
            table.max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
            table.global_step = trainer.global_step
            if table.shape is not None:
                limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
                table.shape = replace(table.shape, limit=limit, accumulate=accumulate)

    def begin_epoch(self, trainer: Trainer) -> None:
        """Select the samples of each loader, and make the fit loop follow."""
        if self._begun == trainer.current_epoch:  # when the run was resumed
            return
        self.note_limits(trainer)
        sessions, is_first = self.sessions.values(), self._begun is None
        self._begun = trainer.current_epoch
        if self._fresh:  # the loop has just been set up with the loaders' full lengths
            for session in sessions:
                session.full_batches = trainer.num_training_batches
            self._fresh = False
        for session in sessions:
            session.begin_epoch(trainer.current_epoch)
        num_batches = private.set_epoch_length(trainer)
        for session in sessions:
            session.num_batches = num_batches
        if is_first and not private.will_iterate(trainer):
            full = trainer.current_epoch == 0 and all(
                session.table.selects_all and not session.batches.is_drawn for session in sessions
            )
            if self._resumed or not full:
                private.iterate(trainer, keep_rng=not self._resumed)

    @property
    def is_running(self) -> bool:
        """Whether an epoch is running."""
        return self.first.running is not None

    def begin_step(self, batch_idx: int) -> None:
        """Have each loader's weights and log ready."""
        for session in self.sessions.values():
            session.begin_step(batch_idx)

    def end_step(self, pl_module: LightningModule, batch_idx: int, *, was_skipped: bool) -> None:
        """Copy the losses of the step into the epoch's logs."""
        for name, session in self.sessions.items():
            step, needs = session.step, isinstance(pl_module, WeightedLossMixin)
            if step.active and step.losses is None and needs and not was_skipped:
                raise RuntimeError(
                    f"Expected `training_step` to call `self.weighted_loss(losses, loader={name!r})`, but it never "
                    f"did. Call it once for each of the loaders {self.names}, and return the sum."
                )
            session.end_step(batch_idx)
            step.active = False

    def end_epoch(self) -> Iterator[tuple[str, float | Tensor]]:
        """Bring the losses into the tables; yield what to log, each name with the loader's at its end."""
        for name, session in self.sessions.items():
            for metric, value in session.end_epoch().items():
                yield f"{metric}/{name}", value

    def state_dict(self, *, save_rng: bool, alone: bool) -> dict[str, Any]:
        """Return the state of each loader's run, as plain tensors and numbers."""
        first = self.first
        return {
            "loaders": {
                name: session.state_dict(save_rng=save_rng and session is first, alone=alone)
                for name, session in self.sessions.items()
            }
        }

    def uninstall(self, trainer: Trainer) -> None:
        """Give the fit loop the user's loaders back."""
        for session in self.sessions.values():
            session.step.active, session.step.scheduler_calls, session.step.full_step = False, None, None
        for loader in self._loaders.values():
            loader.restore(trainer)
        self._loaders = {}


def _reads_a_table(callback: Callback) -> bool:
    return isinstance(callback, TrainerCallback) and not isinstance(callback, Method | SampleTable)


def _reason_against(method: Method, has_mixin: bool) -> str | None:
    """Return why a method cannot prune several loaders; None: it can."""
    if method.picks_in_batch:
        return "takes batches apart"
    if method.refreshes_losses:
        return "asks for the losses of skipped samples"
    if not getattr(method, "takes_new_samples", True):
        return "is made for one dataset"
    if (reason := method.trainer_only()) is not None:
        return f"cannot be copied for each ({reason})"
    asks = type(method).missing_losses is not Method.missing_losses
    return "goes by the loss of a batch, which is of all loaders" if asks and not has_mixin else None
