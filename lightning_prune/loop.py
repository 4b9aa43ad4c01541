"""Pruning without a Trainer: for Lightning Fabric, and for loops of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NoReturn, final

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune.core.checks import check_int, warn_on_first_rank
from lightning_prune.core.epoch import RunningEpoch
from lightning_prune.core.losses import Losses, Normalize, per_sample_losses, total_losses
from lightning_prune.core.method import Method
from lightning_prune.core.plan import Selection, scheduler_calls
from lightning_prune.core.rng import isolated_rng, make_generator
from lightning_prune.core.session import Session
from lightning_prune.core.step import StepRecord, weighted_loss
from lightning_prune.core.table import SampleTable, changed_length
from lightning_prune.trainer import private, probe

_OWNER = "pruner"


@final
class Pruner:
    """Runs a pruning method in a training loop without a Trainer.

    Give it the loader, take the epochs from it, and take each step's loss from it::

        pruner = Pruner(InfoBatch(prune_ratio=0.5), max_epochs=20, seed=0)
        loader = pruner.attach(loader)
        for epoch in pruner.epochs():
            for x, y in loader:
                loss = pruner.weighted_loss(F.cross_entropy(model(x), y, reduction="none"))
                ...                                   # backward, optimizer.step()
                pruner.step_scheduler(scheduler)

    Selections, weights and order are those of ``Trainer(callbacks=[method])``, bit for bit, given the same losses, seed
    and loader. Under an initialised ``torch.distributed`` (Fabric, torchrun) each rank trains its shard, and an epoch's
    end is collective; the ranks' loops must take the same steps.

    Args:
        method: A pruning method. One that picks within batches (SelectiveBackprop, DivBS, RHOLoss), or asks for losses
            of skipped samples (IES), needs ``per_sample_loss``.
        max_epochs: Epochs of the run. None: only ``max_steps`` ends it.
        max_steps: Optimizer steps of the run, after which the loader ends, too. Learning-rate schedules are then not
            stretched: a schedule over ``max_steps`` ends on time. None: only ``max_epochs`` ends it.
        seed: Seed of the draws, unless the method has one of its own. None: the global seed set by ``seed_everything``,
            else 0.
        accumulate_grad_batches: Batches between two optimizer steps; an epoch's last batch ends a shorter such window.
        per_sample_loss: Called with a batch, as the loader yields it, without gradients; returns the losses ``(B,)``,
            or calls ``pruner.weighted_loss(losses, logits=..., targets=..., features=...)`` where the method needs
            more. Put the model into eval mode in it.
        device: Where the losses are. None: where the loader moves its batches (Fabric), else where the first loss is.
        save_rng: Save the states of the global random generators in :meth:`state_dict`, and restore them on resume.
        dataset_id: Name of the training dataset; a run resumed with another one is warned.
        debug_sync: Compare a hash of each epoch's selection across ranks, and stop the run where they differ.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the method cannot work without a Trainer or without ``per_sample_loss``, or the run has no end.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_prune import RandomPruning
        >>> pruner = Pruner(RandomPruning(prune_ratio=0.5), max_epochs=2, seed=0)
        >>> loader = pruner.attach(DataLoader(TensorDataset(torch.arange(8.0)), batch_size=2, shuffle=True))
        >>> weight = torch.zeros(())
        >>> for epoch in pruner.epochs():
        ...     for (x,) in loader:
        ...         loss = pruner.weighted_loss((x - weight) ** 2)
        ...     print(epoch, len(loader), pruner.metrics["prune/kept_fraction"])
        0 2 0.5
        1 2 0.5
    """

    def __init__(
        self,
        method: Method,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        seed: int | None = None,
        accumulate_grad_batches: int = 1,
        per_sample_loss: Callable[[Any], Tensor | None] | None = None,
        device: torch.device | str | None = None,
        save_rng: bool = True,
        dataset_id: str | None = None,
        debug_sync: bool = False,
    ) -> None:
        _check(method, per_sample_loss)
        for name, value in (("max_epochs", max_epochs), ("max_steps", max_steps), ("seed", seed)):
            if value is not None:
                check_int(name, value, low=0 if name == "seed" else 1)
        if max_epochs is None and max_steps is None:
            raise ValueError("Expected `max_epochs` or `max_steps`, by which the run ends, but got neither.")
        check_int("accumulate_grad_batches", accumulate_grad_batches, low=1)
        self.method = method
        self.accumulate_grad_batches = accumulate_grad_batches
        self.per_sample_loss = per_sample_loss
        self.save_rng = save_rng
        self.dataset_id = dataset_id
        if seed is None or method.seed is not None:
            seed = method.resolved_seed
        self._table = _LoopTable(self)
        self._table.max_epochs, self._table.max_steps = max_epochs, max_steps
        self._session = Session(self._table, method, seed=seed, debug_sync=debug_sync)
        self._session.step.owner = _OWNER
        self._device = None if device is None else torch.device(device)
        self._loader: private.PlannedLoader | None = None
        self._moves_to: torch.device | None = None
        self._pending: dict[str, Any] | None = None
        self._steps_before = 0  # optimizer steps of the finished epochs
        self._batch_idx = -1  # of the running step, or of the last one
        self._probing: StepRecord | None = None
        self._skipped = False
        self._stretch = _Stretch(0)
        self.metrics: dict[str, float] = {}
        """What the Trainer would have logged for the last finished epoch, by the names ``prune/*``."""

    @property
    def registry(self) -> SampleTable:
        """The per-sample table: ``losses``, ``counts``, ``column(name)``, ``save(path)``."""
        return self._table

    @property
    def selection(self) -> Selection | None:
        """Selection of the running epoch, or of the last one; None before the first."""
        return self._table.selection

    @property
    def saved_fraction(self) -> float:
        """Share of the sample-steps of all finished epochs that were not trained."""
        return self._table.saved_fraction

    @property
    def global_step(self) -> int:
        """Optimizer steps done, by the batches trained and ``accumulate_grad_batches``."""
        running = self._session.running
        return self._steps_before + (0 if running is None else self._steps(running.batches_done))

    def attach(self, loader: Any) -> PrunedLoader:
        """Return a loader that yields, in each epoch, the batches of its selection; the given one is left alone.

        Args:
            loader: A `DataLoader`, or what ``fabric.setup_dataloaders`` returned for one. A `DistributedSampler` in it
                is replaced: the pruner shards.

        Raises:
            MisconfigurationException: If pruning cannot work with this loader; the message says what to write.
            RuntimeError: If an epoch is running.
            TypeError: If it is no DataLoader.
            ValueError: If the dataset's length is not that of the run.
        """
        if self._session.running is not None:
            raise RuntimeError("Expected `attach` between epochs, but an epoch is running.")
        original, moves_to = private.unwrap_loader(loader)
        if not isinstance(original, DataLoader):
            raise TypeError(
                "Expected a `torch.utils.data.DataLoader`, or what `fabric.setup_dataloaders` returned for one, but "
                f"got {type(loader).__name__}."
            )
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world_size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        planned = private.PlannedLoader(original, seed=self._session.seed, rank=rank, world_size=world_size)
        if self._table.num_samples not in (0, planned.num_samples):
            raise ValueError(changed_length(self._table.num_samples, planned.num_samples))
        self._loader, self._moves_to = planned, moves_to
        self._session.draw_from(self._loader.batch_sampler)
        assert self._table.shape is not None  # noqa: S101  (narrowing)
        self._table.shape = replace(self._table.shape, accumulate=self.accumulate_grad_batches)
        self._session.dataset = [type(original.dataset).__name__, self.dataset_id]
        return PrunedLoader(self, self._loader.planned)

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of the epochs that are left; a loaded state goes on where it was taken.

        An epoch ends, and its losses enter the registry, when the attached loader has yielded its last batch. One whose
        loop is left by ``break`` ends when the next epoch is asked for.

        Raises:
            RuntimeError: If no loader is attached, or the loop's body did not iterate over it.
            StateMismatchError: If a loaded state is of another run.
        """
        if self._loader is None:
            raise RuntimeError("Expected a loader, `loader = pruner.attach(loader)`, before `pruner.epochs()`.")
        self._start(self._loader)
        while self._session.running is not None or not self._is_over():
            if self._session.running is None:
                self._begin_epoch()
            epoch, running = self._table.epoch, self._session.running
            yield epoch
            if self._session.running is running and running is not None:  # it was left before its last batch
                if running.batches_done == 0:
                    raise RuntimeError(_not_iterated(epoch))
                self._end_epoch()

    def _start(self, loader: private.PlannedLoader) -> None:
        state, self._pending = self._pending, None
        device = self._device or self._moves_to or torch.device("cpu")
        if state is not None:
            self._session.restore(state, loader.num_samples, device)
            self._steps_before = state.get("global_step", 0)
            if self._session.running is not None:
                self._follow_running()
            elif self.save_rng:
                self._session.restore_rng()
        elif self._table.num_samples == 0:
            self._session.start(loader.num_samples, device)

    def _is_over(self) -> bool:
        table = self._table
        steps_are = table.max_steps is not None and self.global_step >= table.max_steps
        return steps_are or (table.max_epochs is not None and table.epoch >= table.max_epochs)

    def _begin_epoch(self) -> None:
        self._table.global_step = self.global_step
        self._session.full_batches = self._session.batches.full_length  # a restored epoch may have had another
        self._session.begin_epoch()
        self._follow_running()

    def _follow_running(self) -> None:
        done = self._session.open_epoch.batches_done
        self._batch_idx = done - 1
        self._stretch = _Stretch(self._steps(done))

    def _end_epoch(self) -> None:
        running = self._session.open_epoch
        steps = self._steps(running.batches_done)
        if (told := self._stretch.complaint(steps)) is not None:
            warn_on_first_rank(told, self._session.rank)
        self._steps_before += steps
        self._table.global_step = self._steps_before
        self.metrics = {name: float(value) for name, value in self._session.end_epoch().items()}

    def _batches(self) -> Iterator[Any]:
        """Yield the running epoch's batches that are left, and end it."""
        session, loader = self._session, self._loader
        running = session.running
        if running is None or loader is None:
            raise RuntimeError(
                "Expected to iterate over the attached loader once in each epoch, within `for epoch in "
                "pruner.epochs()`, but no epoch is running. To visit all samples, iterate over your own loader."
            )
        assert isinstance(running, RunningEpoch)  # noqa: S101  (narrowing: `attach` takes no stream)
        running.batch_sampler.skip = running.batches_to_skip
        is_left = running.batches_done < len(running.batch_sampler)
        iterator: Iterator[Any] = iter(loader.planned) if is_left else iter(())
        if self.save_rng:
            session.restore_rng()  # after what the iterator has drawn
        for batch_idx, batch in enumerate(iterator, running.batches_done):
            session.begin_step(batch_idx)
            self._batch_idx, self._skipped = batch_idx, False
            batch = batch if self._moves_to is None else move_data_to_device(batch, self._moves_to)
            try:
                yield self._pick(batch)
            except GeneratorExit:  # `break`, or an exception in the loop's body
                self._commit()
                session.step.active = False
                raise
            self._end_step()
            if self._table.max_steps is not None and self.global_step >= self._table.max_steps:
                break
        self._end_epoch()

    def _pick(self, batch: Any) -> Any:
        """Return the part of a batch that is trained."""
        session = self._session
        if self.method.picks_in_batch:
            self._table.global_step = self.global_step
        if not session.picks_now():
            return batch
        positions = session.pick(self._probe(batch))
        return probe.take_samples(batch, positions, session.open_epoch.batch_length)

    def _probe(self, batch: Any) -> StepRecord:
        """Return what ``per_sample_loss`` finds for a batch."""
        assert self.per_sample_loss is not None  # noqa: S101  (narrowing: checked at construction)
        step = self._probing = StepRecord(owner=_OWNER)
        step.active = True
        try:
            with torch.no_grad():
                losses = self.per_sample_loss(batch)
        finally:
            self._probing = None
        if step.losses is None:
            if losses is None:
                raise RuntimeError(
                    "Expected `per_sample_loss(batch)` to return the losses (B,), or to call "
                    "`pruner.weighted_loss(losses)`, but it did neither."
                )
            step.record(*per_sample_losses(losses, owner=_OWNER), None, None, None, None)
        return step

    def _end_step(self) -> None:
        if self._session.step.losses is None and not self._skipped:
            raise RuntimeError(
                "Expected the loop's body to call `pruner.weighted_loss(losses)` for each batch, but it never did. "
                'Compute the loss with `reduction="none"` and take its weighted mean from `pruner.weighted_loss`. '
                "A batch that is to be left out: `pruner.skip_batch()`."
            )
        self._session.end_step(self._batch_idx)
        self._session.step.active = False

    def _commit(self) -> None:
        """Count the running step, if its losses are known; the step may go on."""
        step = self._session.step
        if self._session.running is not None and step.active and (step.losses is not None or self._skipped):
            self._session.end_step(self._batch_idx)

    def skip_batch(self) -> None:
        """Say that the running batch is not trained, on purpose; its samples stay as they are."""
        self._skipped = True

    def weighted_loss(
        self,
        losses: Losses,
        *,
        mask: Tensor | None = None,
        normalize: Normalize = "sample",
        sample_weight: Tensor | None = None,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        features: Tensor | None = None,
        grad_norm: Tensor | None = None,
        indices: Tensor | None = None,
        record: bool = True,
    ) -> Tensor:
        """Return the weighted mean of a batch's per-sample losses, and record them.

        Outside a step, for example in validation, this is a plain mean. Arguments, value and errors are those of
        `WeightedLossMixin.weighted_loss`.
        """
        step = self._session.step if self._probing is None else self._probing
        losses = total_losses(losses, owner=_OWNER)
        if self._probing is None:
            if step.active and self._device != losses.device:
                self._move_to(losses.device)
            running = self._session.running
            if not step.active and losses.requires_grad and running is not None and running.batches_done == 0:
                raise RuntimeError(_not_iterated(self._table.epoch))
        return weighted_loss(
            step,
            losses,
            mask=mask,
            normalize=normalize,
            sample_weight=sample_weight,
            logits=logits,
            targets=targets,
            features=features,
            grad_norm=grad_norm,
            indices=indices,
            record=record,
        )

    def _move_to(self, device: torch.device) -> None:
        """Have the per-sample state where the losses are."""
        self._device = device
        if self._table.losses.device != device:
            self._session.move_to(device)
            self._session.begin_step(self._batch_idx)

    def step_scheduler(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """Step a learning-rate scheduler in proportion to the full epoch; call it once after each optimizer step.

        Over a shortened epoch, ``scheduler.step`` is so called as often as in a full one. It is called once where
        nothing is stretched: with ``max_steps``, or a method with ``scale_lr_schedule=False``. A schedule by epochs
        needs no stretching: call its ``step`` yourself.

        Args:
            scheduler: Anything with a ``step`` method.
            args: Passed on to ``step``.
            kwargs: Passed on to ``step``.

        Raises:
            RuntimeError: If it is called twice in one optimizer step.
        """
        calls = 1
        if self._table.max_steps is None and self.method.scale_lr_schedule:
            batches = (self._session.num_batches, self._session.full_batches)
            kept, full = (math.ceil(b / self.accumulate_grad_batches) for b in batches)
            calls = self._stretch.calls(scheduler, self._steps(self._batch_idx + 1), kept, full)
        for _ in range(calls):
            scheduler.step(*args, **kwargs)

    def _steps(self, batches: int) -> int:
        """Return the optimizer steps that follow from batches of the running epoch."""
        if batches >= self._session.num_batches:
            return math.ceil(batches / self.accumulate_grad_batches)
        return batches // self.accumulate_grad_batches

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the run as plain tensors and numbers; collective in a run of several processes.

        Taken in the loop's body, it counts the batch whose :meth:`weighted_loss` was called as trained: a new `Pruner`
        that loads it goes on with the next one.
        """
        if self._pending is not None or self._table.num_samples == 0:
            return dict(self._pending or {})
        self._commit()
        return {**self._session.state_dict(save_rng=self.save_rng), "global_step": self._steps_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; :meth:`epochs` goes on there.

        Raises:
            RuntimeError: If an epoch is running.
        """
        if self._session.running is not None:
            raise RuntimeError("Expected `load_state_dict` before `pruner.epochs()`, but an epoch is running.")
        self._pending = dict(state_dict) or None

    def _losses_of(self, batches: DataLoader[Any]) -> Tensor:
        """Return the losses ``(m,)``, float32, of a loader's batches."""
        seed = make_generator(self._session.seed, self._table.epoch, "probe").initial_seed()
        found = []
        with isolated_rng(seed):
            for batch in batches:
                moved = batch if self._moves_to is None else move_data_to_device(batch, self._moves_to)
                found.append(self._probe(moved).recorded_losses.float())
        return torch.cat(found)


@final
class PrunedLoader:
    """A loader whose epochs a `Pruner` shortens; iterate over it once in each of ``pruner.epochs()``.

    ``len`` is the number of batches of the running epoch; other attributes are the user's loader's.
    """

    def __init__(self, pruner: Pruner, planned: DataLoader[Any]) -> None:
        self._pruner = pruner
        self._planned = planned

    def __len__(self) -> int:
        return len(self._planned)

    def __iter__(self) -> Iterator[Any]:
        return self._pruner._batches()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._planned, name)


@final
class _Stretch:
    """How far the schedulers are in an epoch; ``resumed``: optimizer steps of it that were done before."""

    def __init__(self, resumed: int) -> None:
        self.resumed = resumed
        self.served: dict[int, list[int]] = {}  # by the scheduler's id, the optimizer steps in which it was stepped

    def calls(self, scheduler: Any, step: int, kept: int, full: int) -> int:
        """Return how often a scheduler is due after optimizer step ``step``, from 1, of ``kept``, not ``full``."""
        steps = self.served.setdefault(id(scheduler), [])
        last = steps[-1] if steps else self.resumed
        if step <= last:
            raise RuntimeError(
                f"Expected `pruner.step_scheduler` once after each optimizer step, but it was called again after the "
                f"epoch's step {step}. If gradients are accumulated, call it when the optimizer steps, and pass "
                "`Pruner(accumulate_grad_batches=...)`. For several optimizer steps a batch, or a schedule by epochs, "
                "call `scheduler.step()` yourself."
            )
        steps.append(step)
        return sum(scheduler_calls(due, kept, full) for due in range(last + 1, step + 1))

    def complaint(self, steps: int) -> str | None:
        """Return what to warn of after an epoch of ``steps`` optimizer steps: a scheduler that missed some of them."""
        expected = steps - self.resumed
        fewest = min((len(calls) for calls in self.served.values()), default=expected)
        if fewest >= expected - 1:  # the last one may follow the loop
            return None
        return (
            f"`pruner.step_scheduler` was called {fewest} times in an epoch of {expected} optimizer steps, so the "
            "schedule does not end on time. If gradients are accumulated, pass `Pruner(accumulate_grad_batches=...)`."
        )


@final
class _LoopTable(SampleTable):
    """The table of a loop, which finds losses by the loop's own ``per_sample_loss``."""

    def __init__(self, pruner: Pruner) -> None:
        super().__init__()
        self._pruner = pruner

    def refresh_losses(self, indices: Tensor) -> Tensor:
        loader, session = self._pruner._loader, self._pruner._session
        assert loader is not None  # noqa: S101  (narrowing: there is one in a run)
        return probe.losses_by_id(
            self._pruner._losses_of, loader.original, indices, rank=session.rank, world_size=session.world_size
        )

    def mean_loss(self, loader: DataLoader[Any]) -> NoReturn:
        raise RuntimeError("Expected a Trainer to find the mean loss of another loader, but there is none.")


def _not_iterated(epoch: int) -> str:
    return (
        f"Expected epoch {epoch} to train on the loader that `pruner.attach` returned, but it did not. Write "
        "`loader = pruner.attach(loader)`, and `for batch in loader` within `for epoch in pruner.epochs()`."
    )


def _check(method: Method, per_sample_loss: Callable[[Any], Tensor | None] | None) -> None:
    """Raise unless the method can work in a loop."""
    if not isinstance(method, Method):
        raise TypeError(f"Expected a pruning method, as in `Pruner(InfoBatch(), max_epochs=20)`, but got {method!r}.")
    name = type(method).__name__
    if (reason := method.trainer_only()) is not None:
        raise ValueError(f"Expected a method that works without a Trainer, but {name} does not: {reason}.")
    if per_sample_loss is None and (method.picks_in_batch or method.refreshes_losses):
        what = "picks within batches" if method.picks_in_batch else "asks for the losses of skipped samples"
        raise ValueError(
            f"Expected `Pruner(..., per_sample_loss=...)`, since {name} {what}, but got None. Give it a function of a "
            "batch that returns the losses (B,), or calls `pruner.weighted_loss(losses, logits=..., targets=...)`."
        )
