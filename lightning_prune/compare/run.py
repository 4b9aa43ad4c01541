"""One run of a comparison, in a process of its own: ``python -m lightning_prune.compare.run SPEC.json``."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_prune.cli import PruneCLI
from lightning_prune.compare.control import FewerEpochs
from lightning_prune.compare.page import make_report, record_of
from lightning_prune.core.export import atomic_write
from lightning_prune.trainer.registry import ScoreRegistry

PARENT = "LIGHTNING_PRUNE_COMPARE_SENTINEL"
"""Environment variable: the file descriptor that is closed when the command is gone."""
PROBE_BATCHES = 8


@final
class Stopwatch(Callback):
    """Measures the wall and CPU seconds of training, validation included, keeps what it found, and tells the epoch.

    Args:
        progress: File that holds the number of finished epochs while a run goes on. None: nobody asks.
    """

    def __init__(self, progress: Path | None = None) -> None:
        self.progress = progress
        self.started = self.seconds = self.cpu_started = self.cpu_seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the watch: the data are loaded, the sanity check is over."""
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell how far the run is."""
        if self.progress is not None and trainer.is_global_zero:
            self.progress.write_text(f"{trainer.current_epoch + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics with the time so far."""
        if not trainer.sanity_checking:
            seconds, cpu_seconds = self._elapsed()
            point = {"seconds": seconds, "cpu_seconds": cpu_seconds, "epoch": trainer.current_epoch + 1}
            self.curve.append(point | _numbers(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the watch."""
        self.seconds, self.cpu_seconds = self._elapsed()

    def _elapsed(self) -> tuple[float, float]:
        return time.perf_counter() - self.started, time.process_time() - self.cpu_started

    def outcome(self, trainer: Trainer, full_steps: int | None) -> dict[str, Any]:
        """Return what came out of a run.

        Args:
            trainer: Its trainer, after the fit.
            full_steps: Optimizer steps of the whole run with all data, where this one was shorter; else None.
        """
        registries = [callback for callback in trainer.callbacks if isinstance(callback, ScoreRegistry)]  # type: ignore[attr-defined]
        saved = registries[0].saved_fraction if registries else 0.0
        return {
            "metrics": _numbers(trainer),
            "saved": saved if full_steps is None else 1 - trainer.global_step / full_steps,
            "resolution": 1 / registries[0].num_samples if registries else 0.0,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "threads": torch.get_num_threads(),
            "curve": self.curve,
        }


@final
class Probe(Callback):
    """Measures a few steps: how long one takes, and how many an epoch has."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validation_started = self.validation = 0.0
        self.lengths: dict[str, int | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of whole epochs."""
        self.lengths = {"batches": _length(trainer.train_dataloader), "val_batches": _length(trainer.val_dataloaders)}

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the time."""
        self.steps.append(time.perf_counter())

    def on_validation_batch_start(self, *args: Any) -> None:
        """Note the time."""
        self.validation_started = time.perf_counter()

    def on_validation_batch_end(self, *args: Any) -> None:
        """Measure the batch."""
        self.validation = time.perf_counter() - self.validation_started

    def epoch_seconds(self) -> float | None:
        """Return about how long an epoch takes. None: the length of the data is not known."""
        batches = self.lengths["batches"]
        if batches is None or len(self.steps) < 2:
            return None
        step = statistics.median(b - a for a, b in zip(self.steps, self.steps[1:], strict=False))
        return batches * step + (self.lengths["val_batches"] or 0) * self.validation


def _length(loaders: Any) -> int | None:
    """Return the number of batches of a loader, or of all loaders; None if one does not know."""
    if loaders is None:
        return 0
    try:
        return sum(map(len, loaders)) if isinstance(loaders, list | tuple) else len(loaders)
    except (TypeError, NotImplementedError):
        return None


def _numbers(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def write_json(path: Path, content: Any) -> None:
    """Write a file of json, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def callback_argument(class_path: str, init_args: dict[str, Any]) -> str:
    """Return the command-line argument that adds a method to a configuration."""
    return "--trainer.callbacks+=" + json.dumps({"class_path": class_path, "init_args": init_args})


Fit = Callable[[list[Callback]], Trainer]
"""Trains with further callbacks, and returns the trainer."""


def make_run(spec: dict[str, Any], fit: Fit) -> None:
    """Make a run, and write what came out: the spec, and beside it what `Stopwatch.outcome` or a probe found.

    Args:
        spec: Its keys: ``folder`` and ``result`` (paths), ``epochs`` (fewer than the training's, or None), ``probe``,
            and ``report``, arguments of the `PruningReport` by which it leaves a record (None: it leaves none).
        fit: Trains.
    """
    if spec["probe"]:
        probe = Probe()
        trainer = fit([probe])
        found = {"metrics": _numbers(trainer), "epoch_seconds": probe.epoch_seconds(), **probe.lengths}
    else:
        watch = Stopwatch(Path(spec["folder"]) / "epoch")
        shorter = [FewerEpochs(spec["epochs"])] if spec["epochs"] else []
        reports = make_report(spec)
        trainer = fit([watch, *shorter, *reports])
        full_steps = trainer.global_step * spec["max_epochs"] // spec["epochs"] if shorter else None
        found = watch.outcome(trainer, full_steps) | record_of(spec, reports)
    if trainer.interrupted:
        raise SystemExit("Error: interrupted")
    if trainer.is_global_zero:
        write_json(Path(spec["result"]), spec | found)


def main(spec_path: Path) -> None:
    """Train as a file of json says, and write what came out beside it.

    Its keys are those of :func:`make_run`, and ``config`` (path), ``seed``, ``class_path`` (None: no method) and
    ``init_args``.
    """
    sys.path.insert(0, os.getcwd())
    spec = json.loads(spec_path.read_text())
    args = ["fit", "--config", spec["config"], f"--seed_everything={spec['seed']}"]
    args.append(f"--trainer.default_root_dir={spec['folder']}")
    if spec["class_path"] is not None:
        args.append(callback_argument(spec["class_path"], spec["init_args"]))
    args += [f"--trainer.{name}={json.dumps(value)}" for name, value in spec.get("trainer", {}).items()]

    def fit(callbacks: list[Callback]) -> Trainer:
        return PruneCLI(args=args, save_config_callback=None, trainer_defaults={"callbacks": callbacks}).trainer

    make_run(spec, fit)


def end_group() -> None:
    """Kill this process and all of its group."""
    os.killpg(os.getpgrp(), signal.SIGKILL) if hasattr(os, "killpg") else os.kill(os.getpid(), signal.SIGTERM)


def end_with(sentinel: int) -> None:
    """Kill this process and all of its group when the command is gone, be it by SIGKILL.

    Args:
        sentinel: File descriptor that is closed then.
    """
    wait([sentinel])
    end_group()


if __name__ == "__main__":
    if (given := os.environ.pop(PARENT, None)) is not None:  # not for processes that this one starts
        threading.Thread(target=end_with, args=(int(given),), daemon=True).start()
    main(Path(sys.argv[1]))
