"""The score registry: the callback that drives the epochs of a pruned run, syncs the ranks and checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune import _trainer, probe
from lightning_prune._dispatch import ids_of
from lightning_prune.callback import PruningCallback
from lightning_prune.epoch import RunningEpoch, check_same_on_all_ranks
from lightning_prune.methods._shared import finite_mean
from lightning_prune.mixin import StepRecord, WeightedLossMixin, wrong_length
from lightning_prune.plan import EpochPlan, Selection, scheduler_calls
from lightning_prune.rng import collect_rng_state, make_generator, restore_rng_state
from lightning_prune.sampler import PlanSampler
from lightning_prune.table import SampleTable, changed_length

STATE_VERSION = 2
"""Version of the checkpointed state. 1 had neither the dataset's name, nor what an open epoch is checked by."""


class ScoreRegistry(SampleTable, Callback):
    """Keeps the per-sample state of a run. Attached automatically; list it yourself to set its arguments.

    State changes only at the end of an epoch and is then the same on every rank; so a selection is a function of that
    state, the seed and the epoch, and a resumed run derives the same one. Per-sample tensors live on the module's
    device. Without a pruning callback beside it, every epoch is full and losses are only recorded.

    Args:
        loader: Key (dict) or position (list) of the train DataLoader to prune, where there are several.
        save_rng: Save the states of the global random generators with each checkpoint and restore them on resume, so
            that dropout and augmentation go on as if uninterrupted. Nothing else ever touches them.
        dataset_id: Name of the training dataset, for example a version or a hash of its files. A resumed run with
            another name, or another dataset class, is warned that per-sample state may belong to other samples.
        debug_sync: Compare a hash of each epoch's selection and weights across DDP ranks, and stop the run where they
            differ. One more collective an epoch.

    Example:
        >>> import lightning.pytorch as L
        >>> from lightning_prune import InfoBatch
        >>> callbacks = [ScoreRegistry(loader="labelled"), InfoBatch()]
        >>> trainer = L.Trainer(callbacks=callbacks, accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        loader: str | int | None = None,
        save_rng: bool = True,
        dataset_id: str | None = None,
        debug_sync: bool = False,
    ) -> None:
        super().__init__()
        self.loader = loader
        self.save_rng = save_rng
        self.dataset_id = dataset_id
        self.debug_sync = debug_sync
        self.step = StepRecord(self)
        self.max_epochs: int | None = None
        self.max_steps: int | None = None
        self.global_step = 0
        self._epoch = 0
        self._selected: Tensor | None = None
        self._plan: EpochPlan | None = None
        self._running: RunningEpoch | None = None
        self._picking: probe.PickingStep | None = None
        self._trained_steps = 0
        self._full_steps = 0
        self._pending: dict[str, Any] | None = None
        self._start_fit(None, None, None)

    def _start_fit(
        self, trainer: Trainer | None, pl_module: LightningModule | None, method: PruningCallback | None
    ) -> None:
        self._trainer, self._module, self._method = trainer, pl_module, method
        self._seed = 0 if method is None else method.resolved_seed
        self._loader: _trainer.PlannedLoader | None = None
        self._full_batches = 0
        self._fresh_loader = False
        self._first_epoch = True
        self._resumed = False
        self._begun: int | None = None
        self._late_batches: int | None = None

    @property
    def epoch(self) -> int:
        """Epoch that runs, or that comes next."""
        return self._epoch

    @property
    def selected(self) -> Tensor:
        """Which samples ``(n,)``, bool, are in the selection of the running epoch, or of the last one."""
        return torch.ones_like(self.losses, dtype=torch.bool) if self._selected is None else self._selected

    @property
    def selection(self) -> Selection | None:
        """Selection of the running epoch, or of the last one, ids ascending; None before the first.

        Made anew when asked for: what is kept is a mask, and the weights in the order of the visit.
        """
        plan = self._plan
        if plan is None:
            return None
        indices = ids_of(self.selected)
        if plan.weights is None:
            return Selection(indices)
        weights = torch.ones(self.num_samples).index_copy_(0, plan.order.long(), plan.weights)
        return Selection(indices, weights.to(indices.device).index_select(0, indices))

    @property
    def saved_fraction(self) -> float:
        """Share of the sample-steps of all finished epochs, at full length, that were not trained."""
        return 1 - self._trained_steps / self._full_steps if self._full_steps else 0.0

    @property
    def progress(self) -> float:
        """Share of the run that is done: of ``max_steps``, or else, by whole epochs, of ``max_epochs``."""
        if self.max_steps is not None:
            return (self.global_step if self._trainer is None else self._trainer.global_step) / self.max_steps
        return self._epoch / self.max_epochs if self.max_epochs else 0.0

    @property
    def running(self) -> RunningEpoch:
        """The running epoch.

        Raises:
            RuntimeError: If none is running.
        """
        if self._running is None:
            raise RuntimeError("Expected an epoch to be running, but none is.")
        return self._running

    # ------------------------------------------------------------------------------------------------ installation

    @classmethod
    def attach(cls, trainer: Trainer, pl_module: LightningModule) -> ScoreRegistry:
        """Return the trainer's registry, first in its list of callbacks and set up for this fit; add one if needed."""
        callbacks = _trainer.get_callbacks(trainer)
        found = [callback for callback in callbacks if isinstance(callback, ScoreRegistry)]
        registry = found[0] if found else cls()
        # First: bars and checkpoints then see this epoch's state. A new list: Lightning is iterating over the old one.
        _trainer.set_callbacks(trainer, [registry, *(callback for callback in callbacks if callback is not registry)])
        registry.setup(trainer, pl_module, "fit")
        return registry

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and have every train loader that is requested pass through us."""
        if stage != "fit" or self._trainer is trainer:
            return
        callbacks = _trainer.get_callbacks(trainer)
        methods = [callback for callback in callbacks if isinstance(callback, PruningCallback)]
        if len(methods) > 1:
            raise MisconfigurationException(
                f"Expected one pruning method, but got {len(methods)}: {methods}. Keep one of them."
            )
        if (registries := sum(isinstance(callback, ScoreRegistry) for callback in callbacks)) > 1:
            raise MisconfigurationException(f"Expected one `ScoreRegistry` among the callbacks, but got {registries}.")
        method = methods[0] if methods else None
        _trainer.check_trainer(trainer)
        _check_module(pl_module, method)
        self._start_fit(trainer, pl_module, method)
        _trainer.install_source(trainer, self._plan_loaders)

    def _plan_loaders(self, loaders: Any) -> Any:
        """Return the user's loaders with a planned copy of the one to prune; called at each request for them."""
        trainer = self._trainer
        if trainer is None:
            return loaders
        combined, position = _trainer.choose_loader(loaders, self.loader)
        original = combined.flattened[position]
        if self._method is not None and self._method.picks_in_batch and len(combined.flattened) > 1:
            raise MisconfigurationException(
                f"Expected one train DataLoader, since {type(self._method).__name__} takes batches apart, but got "
                f"{len(combined.flattened)}. Use a method that selects once an epoch."
            )
        shuffle = _trainer.check_loader(original)
        num_samples = len(original.dataset)
        if self._running is not None and num_samples != self.num_samples:
            raise changed_length(self.num_samples, num_samples)
        sampler = PlanSampler(
            num_samples, shuffle=shuffle, seed=self._seed, rank=trainer.global_rank, world_size=trainer.world_size
        )
        self._loader = _trainer.PlannedLoader(original, sampler)
        self._fresh_loader = True
        planned = self._loader.planned
        if isinstance(loaders, DataLoader):
            return planned
        combined.flattened = [planned if i == position else leaf for i, leaf in enumerate(combined.flattened)]
        return combined

    @property
    def _planned_loader(self) -> _trainer.PlannedLoader:
        if self._loader is None:
            raise RuntimeError("Expected the train loader to be planned, but the fit loop has not requested it yet.")
        return self._loader

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse schedules that cannot be scaled; warn of those that a module without the mixin will not scale."""
        for config in trainer.lr_scheduler_configs:
            if self._scales(config) and not isinstance(pl_module, WeightedLossMixin):
                rank_zero_warn(
                    f"`{type(pl_module).__name__}` has no `WeightedLossMixin`, so its step-interval schedule does not "
                    "follow the shorter epochs, and will not come to its end. Inherit the mixin, or pass "
                    "`scale_lr_schedule=False` to the pruning callback if that is wanted."
                )
                return
            if self._scales(config) and config.frequency != 1:
                raise MisconfigurationException(
                    f"Expected `frequency=1` for a scheduler with `interval='step'`, but got {config.frequency}: its "
                    "steps cannot be spread exactly over shorter epochs. Use `frequency=1` with a schedule over all "
                    "optimizer steps, or pass `scale_lr_schedule=False` to the pruning callback."
                )

    # ------------------------------------------------------------------------------------------------ epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allocate or restore the per-sample state; continue an interrupted epoch."""
        loader = self._planned_loader
        if not loader.is_used_by(trainer):
            raise MisconfigurationException(
                "Expected the fit loop to draw from the planned loader, but something replaced it after `setup`. "
                "Strategies and callbacks that rebuild the train loader cannot be combined with pruning."
            )
        if isinstance(pl_module, WeightedLossMixin):
            pl_module._pruning_step = self.step
        if self._method is not None and self._method.picks_in_batch:
            self._picking = probe.PickingStep(pl_module, self._pick)
        self._note_limits(trainer)
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._restore(trainer, pl_module, state)
        elif self._losses is None or trainer.current_epoch == 0:
            self._reset(loader.num_samples, pl_module.device)
        elif len(self._losses) != loader.num_samples:
            raise changed_length(len(self._losses), loader.num_samples)

    def _reset(self, num_samples: int, device: torch.device) -> None:
        self._allocate(num_samples, device)
        self._epoch = self._trained_steps = self._full_steps = 0
        self._running = self._selected = self._plan = None
        if self._method is not None:
            self._method.setup_columns(self)

    def refresh_losses(self, indices: Tensor) -> Tensor:
        """Return the losses ``(k,)``, float32, of samples by id from a forward pass; for methods, at an epoch's end.

        Collective in a DDP run. The module is put into eval mode meanwhile, and nothing in the registry changes.
        """
        return probe.losses_by_id(*self._fit, self._planned_loader.original, indices, seed=self._probe_seed)

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
        return make_generator(self._seed, self._epoch, "probe").initial_seed()

    def _note_limits(self, trainer: Trainer) -> None:
        max_epochs = trainer.max_epochs
        self.max_epochs = max_epochs if max_epochs is not None and max_epochs >= 0 else None
        self.max_steps = trainer.max_steps if trainer.max_steps >= 0 else None
        self.global_step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select this epoch's samples and make the fit loop follow."""
        if self._begun != trainer.current_epoch:  # else begun in on_train_start: see _continue_epoch
            self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: Trainer) -> None:
        """Plan the coming epoch from the registry's state."""
        self._epoch = self._begun = trainer.current_epoch
        self._note_limits(trainer)
        if self._fresh_loader:  # the loop has just been set up with the loader's full length
            self._full_batches = int(trainer.num_training_batches)
            self._fresh_loader = False
        self._plan_epoch()
        _trainer.set_epoch_length(trainer)
        # A fit makes its first iterator before its first epoch starts. It will do for a full first epoch.
        if self._first_epoch and not _trainer.will_iterate(trainer):
            is_full = self._epoch == 0 and self._selected is None
            if self._resumed or not is_full:
                _trainer.iterate(trainer, keep_rng=not self._resumed)
        self._first_epoch = False

    def _plan_epoch(self, selection: Selection | None = None) -> RunningEpoch:
        """Make plan and an empty log of the epoch's selection, which is derived unless it is given."""
        selection = self._select() if selection is None else selection
        names = () if self._method is None else self._method.record_names
        loader = self._planned_loader
        device = self.losses.device
        self._selected = None if len(selection) == self.num_samples else selection.mask(self.num_samples).to(device)
        weighs = self._method is not None and self._method.weighs_losses
        self._plan = loader.sampler.make_plan(selection, self._epoch)
        del selection  # 12 bytes a sample, which the log can have
        self._running = RunningEpoch(self._plan, loader.batch_sampler, names, device, weighs=weighs)
        return self._running

    def _select(self) -> Selection:
        """Derive the epoch's selection: a pure function of the state at its start."""
        method = self._method
        if method is None or self._epoch < method.warmup_epochs:
            return Selection.all(self.num_samples)
        selection = method.select(self, self._epoch, make_generator(self._seed, self._epoch, "select"))
        if not isinstance(selection, Selection):
            raise TypeError(
                f"Expected `{type(method).__name__}.select` to return a Selection, but got {type(selection).__name__}."
            )
        selection.check(self.num_samples)
        if selection.weights is not None and not isinstance(self._module, WeightedLossMixin):
            raise MisconfigurationException(
                f"Expected a module with `WeightedLossMixin`, since {type(method).__name__} weighs the losses, but "
                f"`{type(self._module).__name__}` has not got it."
            )
        if self.debug_sync and self._trainer is not None and self._trainer.world_size > 1:
            check_same_on_all_ranks(selection, self._epoch, self.losses.device)
        if (
            len(selection) == self.num_samples
            and selection.weights is not None
            and bool((selection.weights == 1).all())
        ):
            return replace(selection, weights=None)
        return selection

    # ------------------------------------------------------------------------------------------------ steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have the step's weights and log ready: slices of the epoch's, nothing is computed or copied."""
        if self._late_batches is not None:
            _trainer.set_max_batches(trainer, self._late_batches)
            self._late_batches = None
        self.step.clear()
        self.step.weights = self.running.begin_step(batch_idx)
        self.step.active = True

    def _pick(self, batch: Any, *args: Any) -> Any:
        """Return the part of the batch that is trained; called at the start of each step of a batch-level method."""
        trainer, module, method, running = self._trainer, self._module, self._method, self._running
        if trainer is None or module is None or method is None or running is None or not self.step.active:
            return batch
        batch_idx = running.batches_done
        if self._epoch < method.warmup_epochs or not method.picks_now(self, self._epoch, batch_idx):
            return batch
        step = probe.probe(module, batch, *args, hook=method.picks_by_losses)
        step.registry = self
        if step.losses is None or len(step.losses) != running.batch_length:
            raise ValueError(wrong_length(0 if step.losses is None else len(step.losses), running.batch_length))
        generator = make_generator(self._seed, self._epoch, f"pick/{batch_idx}/{trainer.global_rank}")
        positions = method.pick(step, generator)
        self.step.weights = running.narrow(positions)
        return probe.take(module, batch, positions, running.batch_length)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy the step's losses into the epoch's log."""
        step, running = self.step, self.running
        running.batches_done = batch_idx + 1
        if not step.active:  # the collate function returned None: no step was run
            return
        step.active = False
        method = self._method
        if method is not None and method.picks_in_batch:
            running.num_dropped += running.batch_length - running.step_length
        if step.losses is None and method is not None and not isinstance(pl_module, WeightedLossMixin):
            if isinstance(outputs, dict) and isinstance(loss := outputs.get("loss"), Tensor):
                accumulate = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
                step.batch_loss = loss * accumulate  # Lightning divided it
            step.losses = method.missing_losses(step)
        if step.losses is None:
            if not isinstance(pl_module, WeightedLossMixin):
                return  # the method said that it needs no losses
            if pl_module.automatic_optimization and isinstance(outputs, dict) and outputs.get("loss") is None:
                return  # `training_step` returned None: the user skips this batch
            raise RuntimeError(
                "Expected `training_step` to call `self.weighted_loss(losses)`, but it never did. Compute the loss "
                'with `reduction="none"` and return `self.weighted_loss(losses)`.'
            )
        running.write(step, {} if method is None or not running.record_names else method.per_sample(step))

    # ------------------------------------------------------------------------------------------------ end of an epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the epoch's losses into the registry, the same on every rank, and log what was saved."""
        if self._running is None:  # called once more after a resume from an epoch's end under `max_steps`
            return
        metrics = self._close_epoch()
        if self._method is not None and self._method.log_metrics:
            pl_module.log("prune/kept_fraction", metrics.pop("prune/kept_fraction"), prog_bar=True)
            pl_module.log_dict(metrics)

    def _close_epoch(self) -> dict[str, float | Tensor]:
        """Commit the epoch's log: one collective, one scatter. Return what to log."""
        running = self.running
        record = running.collect()
        self.losses.scatter_(0, record.indices, record.losses)
        self._count(self._selected)
        if record.num_nonfinite:
            rank_zero_warn(
                f"{record.num_nonfinite} of {len(record.losses)} losses were NaN or infinite in epoch {self._epoch}. "
                "These samples stay in with weight 1 and are left out of every mean."
            )
        self._trained_steps += running.positions_trained
        self._full_steps += min(self.num_samples, self._full_batches * running.step_size)
        metrics: dict[str, float | Tensor] = {
            "prune/kept_fraction": len(running.plan.order) / self.num_samples * running.trained_fraction,
            "prune/saved_fraction": self.saved_fraction,
            "prune/score_mean": finite_mean(self.losses).float(),
            "prune/nonfinite": float(record.num_nonfinite),
        }
        if self._method is not None:
            self._method.on_epoch_recorded(self, record)
            metrics |= {f"prune/{name}": value for name, value in self._method.metrics(self).items()}
        self._running = None
        self._epoch += 1
        return metrics

    # ------------------------------------------------------------------------------------------------ LR schedules

    def _scales(self, config: Any) -> bool:
        """Return whether the steps of a scheduler are spread over the shorter epochs."""
        trainer, method = self._trainer, self._method
        if trainer is None or method is None or not method.scale_lr_schedule or trainer.max_steps != -1:
            return False
        return config.interval == "step" and not config.reduce_on_plateau

    def scheduler_calls(self, scheduler: Any) -> int:
        """Return how often a learning-rate scheduler is due at this optimizer step (1 where nothing is scaled)."""
        trainer = self._trainer
        if trainer is None or self._running is None:
            return 1
        config = next((c for c in trainer.lr_scheduler_configs if c.scheduler is scheduler), None)
        if config is None or not self._scales(config):
            return 1
        batches = (trainer.fit_loop.batch_idx + 1, int(trainer.num_training_batches), self._full_batches)
        return scheduler_calls(*(math.ceil(b / trainer.accumulate_grad_batches) for b in batches))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain tensors and numbers; called on every rank, and collective in a DDP run."""
        if self._losses is None or self._pending is not None:
            return self._pending or {}
        running = self._running
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "method": None if self._method is None else type(self._method).__name__,
            "seed": self._seed,
            "dataset": self._fingerprint(),
            "epoch": self._epoch,
            "trained_steps": self._trained_steps,
            "full_steps": self._full_steps,
            **self._table_state(),
            "open": running is not None,
        }
        local: dict[str, Any] = {"rng": collect_rng_state() if self.save_rng else None, "log": None}
        if running is not None:
            state |= {
                "batches_done": running.batches_done,
                "num_dropped": running.num_dropped,
                "step_size": running.step_size,
                "world_size": running.plan.world_size,
                "plan": running.digest,
                "full_batches": self._full_batches,
            }
            local["log"] = running.log_state()
        state["ranks"] = self._gather(local)
        if running is not None and self._selected is None and running.plan.weights is None:
            # the selection need not be derived again from the losses that the epoch's log replaces
            known, _ = running.recorded(state["ranks"])
            state["losses"], state["all_selected"] = state["losses"][~Selection(known).mask(self.num_samples)], True
        return state

    def _gather(self, local: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what every rank has; only this rank's after an exception, when others may be gone."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1 or trainer.interrupted:
            return [local]
        everyone: list[dict[str, Any]] = [{} for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(everyone, local)
        return everyone

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: schedules must still see full epochs when they are configured."""
        self._pending = dict(state_dict)

    def _restore(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state, at the start of training."""
        if state.get("version", 1) > STATE_VERSION:
            raise MisconfigurationException(
                f"Expected registry state of version <= {STATE_VERSION}, but the checkpoint has {state['version']}. "
                "It was written by a newer lightning-prune: upgrade to resume it."
            )
        loader = self._planned_loader
        all_selected = state["open"] and state.get("all_selected", False)
        unknown = {"losses": torch.full((loader.num_samples,), math.nan)} if all_selected else {}
        self._load_table({**state, **unknown}, loader.num_samples, pl_module.device)
        if (before := state.get("dataset")) not in (None, now := self._fingerprint()):
            rank_zero_warn(
                f"The checkpoint's per-sample state belongs to the dataset {before} (class, dataset_id), but the run "
                f"is resumed with {now}. If its samples are others, or in another order, start a new run."
            )
        if self._method is None or self._method.seed is None:
            self._seed = loader.sampler.seed = state["seed"]
        self._trained_steps, self._full_steps = state["trained_steps"], state["full_steps"]
        self._epoch, self._resumed, self._running = state["epoch"], True, None
        if self._method is not None:
            self._method.setup_columns(self)
        rank = trainer.global_rank
        local = state["ranks"][rank] if rank < len(state["ranks"]) else {"rng": None, "log": None}
        if state["open"]:
            self._continue_epoch(trainer, state, local)
        else:
            self._restore_rng(local)

    def _fingerprint(self) -> list[str | None]:
        """Return what identifies the dataset beside its length, cheaply: its class and the user's name for it."""
        dataset = None if self._loader is None else type(self._loader.original.dataset).__name__
        return [dataset, self.dataset_id]

    def _restore_rng(self, local: dict[str, Any]) -> None:
        if self.save_rng and local["rng"] is not None:
            restore_rng_state(local["rng"])

    def _continue_epoch(self, trainer: Trainer, state: dict[str, Any], local: dict[str, Any]) -> None:
        """Re-derive the plan of an epoch that was open when the checkpoint was written, and go on in its middle."""
        self._full_batches, self._fresh_loader = state["full_batches"], False
        all_selected = state.get("all_selected", False)
        running = self._plan_epoch(Selection.all(self.num_samples) if all_selected else None)
        world_size = running.plan.world_size
        if (before := state.get("world_size", world_size)) != world_size:
            raise MisconfigurationException(
                f"Expected {before} processes, as when the checkpoint was written in the middle of epoch "
                f"{state['epoch']}, but got {world_size}: each has a part of that epoch. Resume with {before}, or from "
                "a checkpoint of an epoch's end."
            )
        if state["step_size"] != running.step_size:
            raise MisconfigurationException(
                f"Expected {state['step_size']} samples per step (batch size times devices), as when the checkpoint "
                f"was written in the middle of epoch {state['epoch']}, but got {running.step_size}. Resume with "
                "the same batch size and number of devices, or from a checkpoint of an epoch's end."
            )
        if state.get("plan") != running.digest:
            raise MisconfigurationException(
                f"Expected to derive the selection of epoch {state['epoch']} again, in whose middle the checkpoint was "
                "written, but got another one: the method, its arguments, or the version of lightning-prune or torch "
                "is not the same. Resume as the run was started, or from a checkpoint of an epoch's end."
            )
        if all_selected:  # the checkpoint holds the losses of the samples that are not in the epoch's log
            known, losses = (values.to(self.losses.device) for values in running.recorded(state["ranks"]))
            rest = ids_of(~Selection(known).mask(self.num_samples))
            self.losses.index_copy_(0, known, losses).index_copy_(0, rest, state["losses"].to(losses.device))
        running.continue_from(state["batches_done"], local["log"])
        running.num_dropped = state.get("num_dropped", 0)
        if trainer.current_epoch == self._epoch:
            self._begun, self._first_epoch = self._epoch, False
            num_batches = _trainer.set_epoch_length(trainer)
            finished = running.batches_done >= num_batches  # then draw nothing: a limit would not stop it
            running.batch_sampler.skip = len(running.batch_sampler) if finished else running.batches_done
            _trainer.finish_batch_progress(trainer, running.batches_done)
            _trainer.iterate(trainer, keep_rng=True)
            self._restore_rng(local)
            return
        # Written on the last batch: Lightning calls neither this epoch's end nor the next one's start.
        self._close_epoch()
        self._restore_rng(local)
        self._begin_epoch(trainer)
        _trainer.start_epoch_progress(trainer)
        self._late_batches = int(trainer.num_training_batches)
        trainer.fit_loop.max_batches = state["batches_done"]  # the loop compares the old epoch's progress with it first

    # ------------------------------------------------------------------------------------------------ clean-up

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the trainer, the loader and the module as they were; the state stays, for a last checkpoint."""
        self._uninstall(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer, the loader and the module as they were."""
        if stage == "fit":
            self._uninstall(trainer, pl_module)

    def _uninstall(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step.active = False
        pl_module.__dict__.pop("_pruning_step", None)
        if self._picking is not None:
            self._picking.uninstall()
            self._picking = None
        _trainer.uninstall_source(trainer)
        if self._loader is not None:
            self._loader.restore(trainer)
        self._trainer = None


def _check_module(pl_module: LightningModule, method: PruningCallback | None) -> None:
    """Refuse a module without the mixin; warn of one whose own ``lr_scheduler_step`` hides the mixin's."""
    name = type(pl_module).__name__
    if not isinstance(pl_module, WeightedLossMixin):
        hook = callable(getattr(pl_module, "per_sample_loss", None))
        if method is not None and not method.needs_mixin and method.picks_in_batch and not hook:
            raise MisconfigurationException(
                f"Expected per-sample losses for {type(method).__name__} to pick by, but `{name}` does not give them. "
                f"{probe.HOOK_HINT}"
            )
        if method is not None and not method.needs_mixin and not method.weighs_losses:
            return
        raise MisconfigurationException(
            f"Expected a module with `WeightedLossMixin`, but `{name}` has not got it. Write "
            f"`class {name}(WeightedLossMixin, LightningModule)` and return `self.weighted_loss(losses)` from "
            "`training_step`."
        )
    if method is not None and method.scale_lr_schedule:
        owner = next(c for c in type(pl_module).__mro__ if "lr_scheduler_step" in vars(c))
        if owner is not WeightedLossMixin:
            rank_zero_warn(
                f"`{owner.__name__}.lr_scheduler_step` hides the one of `WeightedLossMixin`, so step-interval "
                "schedules follow the shorter epochs only if it steps the scheduler "
                "`self.pruned_scheduler_calls(scheduler)` times. If that is not wanted, pass "
                "`scale_lr_schedule=False` to the pruning callback."
            )
