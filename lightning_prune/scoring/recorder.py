"""Scores as a by-product of an ordinary fit."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core.checks import check_choice
from lightning_prune.core.export import check_writable
from lightning_prune.core.names import class_names
from lightning_prune.core.step import ABSENT
from lightning_prune.scoring.score_file import save_scores
from lightning_prune.scoring.trackers.aum import AUM
from lightning_prune.scoring.trackers.dual import DUAL
from lightning_prune.scoring.trackers.dynunc import DynUnc
from lightning_prune.scoring.trackers.el2n import EL2N
from lightning_prune.scoring.trackers.entropy import Entropy
from lightning_prune.scoring.trackers.forgetting import Forgetting
from lightning_prune.scoring.trackers.grand import GraNd
from lightning_prune.scoring.trackers.least_confidence import LeastConfidence
from lightning_prune.scoring.trackers.margin import Margin
from lightning_prune.scoring.trackers.small_loss import SmallLoss
from lightning_prune.scoring.trackers.tdds import TDDS
from lightning_prune.scoring.trackers.tracker import Batch, Tracker
from lightning_prune.trainer.base import TrainerCallback
from lightning_prune.trainer.callback import PruningCallback
from lightning_prune.trainer.private import get_callbacks
from lightning_prune.trainer.registry import ScoreRegistry

TRACKERS: dict[str, type[Tracker]] = {
    cls.__name__: cls
    for cls in (AUM, DUAL, DynUnc, EL2N, Entropy, Forgetting, GraNd, LeastConfidence, Margin, SmallLoss, TDDS)
}
_STEPS = 32
"""Steps recorded before the trackers are fed: their small kernels then cost next to nothing a step."""


@final
class ScoreRecorder(TrainerCallback):
    """Collects scores while a model trains, and writes a score file for :class:`StaticPruning` at the end.

    The module passes what the trackers need: ``self.weighted_loss(losses, logits=logits, targets=y)``. Nothing else
    changes; there is no further forward pass. All ranks see all batches, so the scores are those of one process.

    Args:
        tracker: What to score: trackers, or their class names for the default arguments. The number of samples and of
            classes may be left out.
        save_to: Score file. With several trackers each writes its own, named after it: of ``"scores/run.npz"`` comes
            ``scores/run_tdds.npz``, of the folder ``"scores"`` comes ``scores/tdds.npz``. None: write nothing.

    Attributes:
        trackers: The trackers; ``compute()`` returns their scores.
        paths: Files written by the last fit.
        dataset: The training dataset of the last fit, for names.

    Raises:
        TypeError: If something is not a tracker.
        OSError: Before the training, if a file cannot be written.
        ValueError: If a name is unknown, at the start of training if the run is too short for a tracker's window, or
            at its end if it ended too early.

    Example:
        >>> ScoreRecorder(tracker=["TDDS", EL2N(num_epochs=5)], save_to="scores")
        ScoreRecorder([TDDS(...), EL2N(...)], save_to='scores')
    """

    takes_new_samples = False

    def __init__(
        self,
        tracker: Tracker | str | Sequence[Tracker | str] = "TDDS",
        save_to: str | PathLike[str] | None = None,
    ) -> None:
        given = [tracker] if isinstance(tracker, (Tracker, str)) else list(tracker)
        self.trackers = [_resolve(one) for one in given]
        if not self.trackers:
            raise ValueError("Expected `tracker` to name at least one tracker, but got none.")
        self.save_to = save_to
        self._state_key = self._generate_state_key(trackers=[repr(one) for one in self.trackers])  # read at each hook
        self.paths: list[Path] = []
        self.dataset: Any = None
        self._needs = tuple(sorted({name for one in self.trackers for name in one.needs}))
        self._targets: Tensor | None = None
        self._pending: dict[str, Any] | None = None
        self._started = False
        self._open: int | None = None
        self._buffer: list[dict[str, Tensor]] = []
        self._registry: ScoreRegistry | None = None
        self._world_size = 1
        self._failed: ValueError | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the registry, which knows which samples a batch has."""
        if stage == "fit":
            self._registry = ScoreRegistry.attach(trainer, pl_module)
            self._world_size = trainer.world_size
            if self.save_to is not None and trainer.is_global_zero and self._registry.takes_part:
                for path in self._files(self.save_to):
                    check_writable(path, what="scores")

    def _files(self, save_to: str | PathLike[str]) -> list[Path]:
        return _name_files(Path(save_to), [type(tracker).__name__.lower() for tracker in self.trackers])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh, or from a checkpoint; refuse runs that end before a tracker has a score."""
        if self._registry is not None and not self._registry.takes_part:
            return
        num_samples = 0 if self._registry is None else self._registry.num_samples
        if self._registry is not None:
            self.dataset = getattr(self._registry.planned_loader.original, "dataset", None)
        max_epochs = trainer.max_epochs or -1
        for tracker in self.trackers:
            if tracker.num_samples not in (None, num_samples):
                raise ValueError(
                    f"Expected {tracker!r} to be for the {num_samples} samples of the training dataset, but it is for "
                    f"{tracker.num_samples}. Leave out its `num_samples`: it is taken from the dataset."
                )
            if -1 < max_epochs < tracker.min_epochs and not _is_dev_run(trainer):
                raise ValueError(
                    f"Expected `max_epochs` >= {tracker.min_epochs} for {tracker!r}, but got {max_epochs}: no sample "
                    "would have a score. Train longer or choose a shorter window."
                )
            tracker.num_samples = num_samples
        if any(isinstance(callback, PruningCallback) for callback in get_callbacks(trainer)):
            rank_zero_warn(
                "Scores are recorded while samples are pruned: what is not trained in an epoch is not scored in it. "
                "For the published scores record an unpruned run."
            )
        self._started = True
        self._buffer.clear()
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._restore(state)
        elif trainer.current_epoch == 0:
            self._open = self._targets = None
            for tracker in self.trackers:
                tracker.reset()

    def _restore(self, state: dict[str, Any]) -> None:
        self._open, self._targets = state["open"], state["targets"]
        for tracker, tracker_state in zip(self.trackers, state["trackers"], strict=True):
            tracker.load_state_dict(tracker_state)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the step recorded; every few steps feed it to the trackers."""
        if self._registry is None or self._registry.session.running is None:
            return  # the rest of an epoch that was none of ours
        if self._open not in (None, trainer.current_epoch):  # resumed from a checkpoint of an epoch's last batch
            self._end_epoch()
        self._open = trainer.current_epoch
        if self._registry is not None and batch is not None and self._registry.step.losses is not None:
            self._buffer.append(self._read_step(self._registry))
        if (batch_idx + 1) % _STEPS == 0:
            self._flush()

    def _read_step(self, registry: ScoreRegistry) -> dict[str, Tensor]:
        """Copy what the trackers need: the step's tensors may be reused by the next one."""
        step = registry.step
        rows = {"indices": step.indices.clone(), "losses": step.losses}
        names = set(self._needs)
        if (labels := step.targets) is not None:  # for the file; and mixed ones tell that the logits are mixed too
            is_class = labels.dim() == 1 and not labels.is_floating_point()
            names |= {"targets"} if is_class or "logits" in names else set()
        for name in sorted(names):
            value = getattr(step, name)
            if value is None:
                needing = next(tracker for tracker in self.trackers if name in tracker.needs)
                raise ValueError(
                    f"Expected `{name}` for {type(needing).__name__}, but got None. Write "
                    f"`self.weighted_loss(losses, {name}=...)` in `training_step`."
                )
            rows[name] = value
        return {name: value.clone() for name, value in rows.items() if value is not None}

    def _flush(self) -> None:
        """Feed what was noted, on all ranks, to the trackers: the same on every rank."""
        buffer = self._buffer
        self._buffer = []
        if self._world_size > 1:
            buffer = _gather(buffer, self._world_size)
        if not buffer:
            return
        names = set.intersection(*(set(step) for step in buffer))
        rows = {name: torch.cat([step[name] for step in buffer]) for name in names}
        absent = rows["losses"] <= ABSENT  # masked out: not recorded (in half precision the mark is -inf)
        inputs = {name: _blank(values, absent) for name, values in rows.items() if name != "indices"}
        batch = Batch(rows["indices"], **inputs)
        for tracker in self.trackers:
            tracker.record(batch)
        if "targets" in names:
            self._note_targets(batch)

    def _note_targets(self, batch: Batch) -> None:
        if self._targets is None:
            self._targets = torch.full((self.trackers[0].num_samples or 0,), -1, dtype=torch.int64)
        device = batch.targets.device
        self._targets = self._targets.to(device)
        self._targets[batch.indices.to(device)] = batch.targets

    def _end_epoch(self) -> None:
        self._open = None
        for tracker in self.trackers:
            tracker.end_epoch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Feed the rest of the epoch."""
        if self._open is not None:
            self._flush()
            self._end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the score files; warn of samples without a score."""
        takes_part = self._registry is None or self._registry.takes_part
        if self.save_to is None or _is_dev_run(trainer) or not takes_part:
            return
        self.paths = self._files(self.save_to)
        for tracker, path in zip(self.trackers, self.paths, strict=True):
            try:
                scores = tracker.compute()
            except ValueError as error:
                self._failed = self._failed or error
                continue
            if missing := int(scores.isnan().sum()):
                rank_zero_warn(
                    f"{missing} of {len(scores)} samples have no score of {tracker!r}: they were not in the batches of "
                    "enough epochs. Use `drop_last=False`, or train longer."
                )
            columns = tracker.columns() | ({} if self._targets is None else {"targets": self._targets})
            if trainer.is_global_zero:
                save_scores(
                    path, scores, method=type(tracker).__name__, keep=tracker.keep, parameters=tracker.parameters,
                    columns=columns, high=tracker.high, classes=class_names(self.dataset),
                )  # fmt: skip
        trainer.strategy.barrier()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complain of a tracker without a score, now that everyone has written what there is to write."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint, by trackers: there may be several recorders."""
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded; called on every rank, and collective in a DDP run."""
        if self._pending is not None:
            return self._pending
        self._flush()
        targets = None if self._targets is None else self._targets.cpu()
        trackers = [tracker.state_dict() for tracker in self.trackers]
        return {"open": self._open, "targets": targets, "trackers": trackers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts; in a run that goes on, as after a search, go back to it at once."""
        if not self._started:
            self._pending = dict(state_dict)
            return
        self._buffer.clear()
        self._restore(state_dict)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Expect nothing more of other ranks, which may be gone."""
        self._world_size = 1

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the registry."""
        self._started = False
        self._registry = None
        self._world_size = 1

    def __repr__(self) -> str:
        trackers = ", ".join(f"{type(tracker).__name__}(...)" for tracker in self.trackers)
        return f"ScoreRecorder([{trackers}], save_to={self.save_to!r})"


def _is_dev_run(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _resolve(tracker: Tracker | str) -> Tracker:
    if isinstance(tracker, str):
        check_choice("tracker", tracker, tuple(TRACKERS))
        return TRACKERS[tracker]()
    if not isinstance(tracker, Tracker):
        raise TypeError(f"Expected `tracker` to be a tracker or the name of one, but got {type(tracker).__name__}.")
    return tracker


def _gather(buffer: list[dict[str, Tensor]], world_size: int) -> list[dict[str, Tensor]]:
    """Return the ranks' buffers in the order of the ranks; a padded copy of a sample so comes after the original."""
    everyone: list[list[dict[str, Tensor]]] = [[] for _ in range(world_size)]
    local = [{name: value.cpu() for name, value in step.items()} for step in buffer]
    torch.distributed.all_gather_object(everyone, local)
    devices = [value.device for step in buffer for value in step.values()][:1]
    return [
        {name: value.to(devices[0]) if devices else value for name, value in step.items()}
        for rank in everyone
        for step in rank
    ]


def _blank(values: Tensor, absent: Tensor) -> Tensor:
    """Put NaN in the rows that are masked out: a visit without a value is no visit."""
    if not values.is_floating_point():
        return values
    return values.masked_fill(absent.view(-1, *[1] * (values.dim() - 1)), torch.nan)


def _name_files(save_to: Path, names: list[str]) -> list[Path]:
    if len(names) == 1 and save_to.suffix:
        return [save_to]
    unique = [name if names.index(name) == i else f"{name}_{i}" for i, name in enumerate(names)]
    if save_to.suffix:
        return [save_to.with_name(f"{save_to.stem}_{name}{save_to.suffix}") for name in unique]
    return [save_to / f"{name}.npz" for name in unique]
