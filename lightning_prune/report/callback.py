"""A callback that leaves a report of the run: a page to look at, and a record to compare runs by later."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

import lightning_prune.report.write as writer
from lightning_prune.analysis.selections import score_summary
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.export import atomic_write, check_writable
from lightning_prune.report.classes import Labels, find_labels
from lightning_prune.report.history import SampleHistory
from lightning_prune.report.images import Look, find_look
from lightning_prune.report.loggers import hand_to
from lightning_prune.report.record import FILE_NAME, RunRecord
from lightning_prune.report.summary import starved_classes, summarize, to_be_seen
from lightning_prune.trainer.base import TrainerCallback
from lightning_prune.trainer.private import get_callbacks
from lightning_prune.trainer.registry import ScoreRegistry

STATE_VERSION = 1
_MOST_CLASS_COUNTS = 1000
"""With more classes, what was trained of each is not kept epoch by epoch."""


@final
class PruningReport(TrainerCallback):
    """Writes a report of the run when it ends: one HTML file that needs no network.

    It shows what was saved and what that is worth in time, what was kept in each epoch and of each class, how often
    samples were trained, how their losses went, and which are suspicious, hard, easy or often forgotten. The training
    is not affected. Works with every method, and without one: such a run is what others are compared with.

    Beside the page it leaves ``prune_report.npz`` in the run's log folder (without a logger, a file beside the page),
    by which ``lightning-prune report RUN [RUN ...]`` makes a page of one run or several.

    It keeps 23 bytes a sample, and 64 for each of at most 200,000 samples whose losses it follows; steps do no more
    than without it. The state goes into checkpoints, and a resumed run reports on all of it. Under DDP rank 0 writes.

    Args:
        path: File to write, by its suffix ``.html`` (extra ``report``), ``.md`` or ``.json``; relative to the working
            directory.
        images: What samples look like: a function from a sample's id to a picture (PIL image; array or tensor
            ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``) or to a text, or the name of an attribute of the training
            dataset that holds one of these for each sample. None: ``data`` of torchvision's datasets, files of its
            `ImageFolder`, the first tensor of a `TensorDataset`, where these look like pictures; else ids are shown.
        targets: Name of the dataset's attribute with one label for each sample, or for a `TensorDataset` the position
            of the tensor. None: ``targets``, ``labels``, or the second tensor of a `TensorDataset`, where there is one.
        metric: Name of the logged metric to show. None: the first validation metric with ``acc`` in its name, else the
            first with ``loss``.

    Raises:
        ModuleNotFoundError: If the page is to be HTML and the extra ``report`` is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If the path has another suffix.

    Example:
        >>> import lightning.pytorch as L
        >>> from lightning_prune import InfoBatch
        >>> callbacks = [InfoBatch(), PruningReport("report.md")]
        >>> trainer = L.Trainer(callbacks=callbacks, accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        path: str | PathLike[str] = "report.html",
        images: str | Callable[[int], Any] | None = None,
        targets: str | int | None = None,
        metric: str | None = None,
    ) -> None:
        super().__init__()
        self.path = writer.check_path(path)
        if not (images is None or isinstance(images, str) or callable(images)):
            raise TypeError(f"Expected `images` to be a function or the name of an attribute, but got {images!r}.")
        self.images = images
        self.targets = targets
        self.metric = metric
        self.history = SampleHistory()
        """What is kept of each sample."""
        self.epochs: list[dict[str, Any]] = []
        """What is kept of each epoch."""
        self.record: RunRecord | None = None
        """The run's record, once it has been written; on rank 0."""
        self.record_path: Path | None = None
        """Where it has been written."""
        self._class_kept = torch.zeros(0, 0, dtype=torch.int32)
        self._curve: list[list[float]] = []
        self._labels: Labels | None = None
        self._looked_at = -1
        self._look: Look | None = None
        self._registry: ScoreRegistry | None = None
        self._seconds = 0.0  # of the open epoch, before a resume
        self._written: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the score registry, if no method does; refuse a path that cannot be written."""
        if stage != "fit" or self._registry is not None:
            return
        if trainer.is_global_zero:
            check_writable(self.path, what="report")
        self._registry = ScoreRegistry.attach(trainer, pl_module)
        self._registry.session.observers.append(self._take)
        self._written = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for labels and pictures, so that what cannot be shown is known before the first step."""
        registry = ScoreRegistry.of(trainer)
        if not registry.takes_part:
            return
        if registry.num_samples == 0:
            rank_zero_warn(
                "There will be no report: of a stream whose batches tell no ids, nothing is known of single samples. "
                "Name its length, `ScoreRegistry(num_samples=...)`, and pass ids, "
                "`self.weighted_loss(losses, indices=ids)`."
            )
            return
        self._find_labels(registry)
        self._look = find_look(registry.planned_loader.dataset, self.images)
        if registry.epoch == 0 and registry.session.running is None:
            self._start()

    def _find_labels(self, registry: ScoreRegistry) -> Labels | None:
        """Return the labels of the dataset, which may have grown since they were looked at."""
        dataset = registry.planned_loader.dataset
        if self._looked_at != registry.num_samples:
            self._labels = find_labels(dataset, self.targets)
            self._looked_at = registry.num_samples
        return self._labels

    def _start(self) -> None:
        self.history.start(0, "cpu")
        self.epochs, self._curve, self.record, self.record_path = [], [], None, None
        self._class_kept = torch.zeros(0, 0, dtype=torch.int32)
        self._seconds = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metric."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        name = choose_metric(trainer.callback_metrics, self.metric)
        if name is not None:
            before = [point for point in self._curve if point[0] < trainer.current_epoch]
            self._curve = [*before, [trainer.current_epoch, float(trainer.callback_metrics[name])]]

    def _take(self, record: EpochRecord, metrics: dict[str, float | Tensor]) -> None:
        """Take in an epoch, at its end: the registry has closed it, on every rank alike."""
        registry = self._registry
        assert registry is not None  # noqa: S101  (narrowing: `setup` has had the session call this)
        if registry.num_samples == 0:  # a stream of which nothing is kept by sample
            return
        visited = registry.running.asked
        self.history.take(registry, record, visited)
        trained = record.indices if len(record.indices) else torch.unique(visited.to(registry.losses.device).long())
        losses = score_summary(registry.losses)
        self.epochs.append(
            {
                "epoch": registry.epoch,
                "kept": float(metrics["prune/kept_fraction"]),
                "saved": float(metrics["prune/saved_fraction"]),
                "trained": len(trained),
                "seconds": self._seconds + registry.clock.seconds,
                **{f"loss_{name}": value for name, value in losses.items()},
            }
        )
        self._seconds = 0.0
        labels = self._find_labels(registry)
        if labels is not None and labels.num_classes is not None and labels.num_classes <= _MOST_CLASS_COUNTS:
            self._count_classes(torch.bincount(labels.values[trained.cpu()], minlength=labels.num_classes))

    def _count_classes(self, counts: Tensor) -> None:
        """Add the epoch's row; classes may have come with samples that were appended."""
        before = self._class_kept
        rows = before.new_zeros(len(self.epochs), len(counts))
        if before.shape[0] == len(rows) - 1:
            rows[:-1, : before.shape[1]] = before[:, : len(counts)]
        rows[-1] = counts
        self._class_kept = rows

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record and the page, and hand them to the loggers."""
        registry = self._registry
        if registry is None or not registry.takes_part or not self.epochs or getattr(trainer, "fast_dev_run", False):
            return
        log_dir = trainer.log_dir  # collective
        if not trainer.is_global_zero:
            return
        record = self._make_record(trainer, registry, log_dir if trainer.loggers else None)
        path = Path(log_dir) / FILE_NAME if trainer.loggers and log_dir else self.path.with_suffix(".npz")
        self.record, self.record_path = record, path
        record.save(path)
        summary = summarize([record])
        with atomic_write(self.path) as file:
            file.write(writer.render(summary, self.path.suffix).encode())
        for logger in trainer.loggers:
            hand_to(logger, summary, record, self.path, trainer.global_step)
        self._written = [f"report '{self.path}'", f"its record '{path}'"]

    def _make_record(self, trainer: Trainer, registry: ScoreRegistry, log_dir: str | None) -> RunRecord:
        method, labels = registry.session.method, self._find_labels(registry)
        metric = choose_metric(trainer.callback_metrics, self.metric)
        columns = {name: values.numpy() for name, values in self.history.columns().items()}
        if labels is not None:
            columns["given"] = labels.values.numpy()
        columns |= _suspicions(trainer, registry.num_samples)
        history = self.history
        meta = {
            "name": Path(log_dir).name if log_dir else self.path.stem,
            "method": None if method is None else type(method).__name__,
            "description": "full data" if method is None else repr(method),
            "arguments": {} if method is None else method.arguments(),
            "num_samples": registry.num_samples,
            "dataset": type(registry.planned_loader.dataset).__name__,
            "trained_steps": registry.trained_steps,
            "full_steps": registry.full_steps,
            "epochs": self.epochs,
            "metric": metric,
            "metric_curve": self._curve,
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "class_names": None if labels is None else labels.names,
            "has_classes": labels is not None and labels.num_classes is not None,
            "span": history.span,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        record = RunRecord(
            meta,
            columns,
            history.course.cpu().numpy(),
            None if history.followed is None else history.followed.cpu().numpy(),
            self._class_kept.numpy() if len(self._class_kept) == len(self.epochs) else None,
        )
        if self._look is not None:
            record.looks.collect(self._look, to_be_seen(record))
        for name, share in starved_classes(record):
            rank_zero_warn(
                f"Class {name!r} was kept at {share:.2f} of the average share of the epochs that left samples out, "
                "which is under half of it. Prune less, or use a method that draws from all samples."
            )
        return record

    @property
    def leaves(self) -> list[str]:
        """What the run has left behind, in words, for the last lines of `fit`."""
        return self._written

    def state_dict(self) -> dict[str, Any]:
        """Return everything kept, as plain tensors and numbers; the same on every rank but for the seconds."""
        return {
            "version": STATE_VERSION,
            "history": self.history.state_dict(),
            "epochs": [dict(epoch) for epoch in self.epochs],
            "class_kept": self._class_kept.clone(),
            "curve": [list(point) for point in self._curve],
            "seconds": self._seconds + (0.0 if self._registry is None else self._registry.clock.seconds),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.history.load_state_dict(state_dict["history"])
        self.epochs = [dict(epoch) for epoch in state_dict["epochs"]]
        self._class_kept = state_dict["class_kept"].clone()
        self._curve = [list(point) for point in state_dict["curve"]]
        self._seconds = state_dict["seconds"]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the run."""
        if stage == "fit":
            self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the run."""
        self._let_go()

    def _let_go(self) -> None:
        self._registry = self._labels = self._look = None
        self._looked_at = -1


def choose_metric(metrics: dict[str, Tensor], named: str | None) -> str | None:
    """Return which of the logged metrics a report shows; None: there is none to show.

    Example:
        >>> choose_metric({"train_loss": 0.1, "val_loss": 0.2, "val_acc": 0.9}, None)
        'val_acc'
    """
    if named is not None:
        return named if named in metrics else None
    own = [name for name in metrics if not name.startswith("prune/") and not name.endswith("_step")]
    own.sort(key=lambda name: "val" not in name.lower())
    for part in ("acc", "loss"):
        if found := next((name for name in own if part in name.lower()), None):
            return found
    return own[0] if own else None


def _suspicions(trainer: Trainer, num_samples: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a callback that finds label issues says of each sample: its suspicion, and the label it suggests."""
    for callback in get_callbacks(trainer):
        if not callable(find := getattr(callback, "issues", None)):
            continue
        try:
            found = {name: np.asarray(values) for name, values in find().items()}
        except RuntimeError:  # it was told of no labels
            continue
        if not {"index", "score", "suggested"} <= found.keys():
            continue
        order = np.argsort(found["score"], kind="stable")  # of several labels of a sample the most suspicious counts
        ids, suggested = found["index"][order], found["suggested"][order]
        columns = {
            "suspicion": np.full(num_samples, np.nan, dtype=np.float32),
            "suggested": np.full(num_samples, -1, dtype=suggested.dtype),
        }
        columns["suspicion"][ids], columns["suggested"][ids] = found["score"][order], suggested
        return columns
    return {}
