"""One run of a comparison, in a process of its own: ``python -m lightning_prune.compare.run SPEC.json``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_prune.cli import PruneCLI
from lightning_prune.core.export import atomic_write
from lightning_prune.trainer.registry import ScoreRegistry


@final
class _Stopwatch(Callback):
    """Measures the seconds of training, validation included, and keeps what each validation found."""

    def __init__(self) -> None:
        self.started = self.seconds = self.cpu_started = self.cpu_seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the watch: the data are loaded, the sanity check is over."""
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics with the time so far."""
        if not trainer.sanity_checking:
            point = {"seconds": time.perf_counter() - self.started, "epoch": trainer.current_epoch + 1}
            self.curve.append(point | _numbers(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the watch."""
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self.cpu_started


def _numbers(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def write_json(path: Path, content: Any) -> None:
    """Write a file of json, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def callback_argument(class_path: str, init_args: dict[str, Any]) -> str:
    """Return the command-line argument that adds a method to a configuration."""
    return "--trainer.callbacks+=" + json.dumps({"class_path": class_path, "init_args": init_args})


def main(spec_path: Path) -> None:
    """Train as a file of json says, and write what came out beside it.

    Its keys: ``config`` (path), ``seed``, ``class_path`` (None: full data) and ``init_args``, ``folder`` and ``result``
    (paths). The result repeats it and adds ``metrics``, ``saved``, ``seconds``, ``cpu_seconds`` (of this
    process) and ``curve``.
    """
    sys.path.insert(0, os.getcwd())
    spec = json.loads(spec_path.read_text())
    watch = _Stopwatch()
    args = ["fit", "--config", spec["config"], f"--seed_everything={spec['seed']}"]
    args.append(f"--trainer.default_root_dir={spec['folder']}")
    if spec["class_path"] is not None:
        args.append(callback_argument(spec["class_path"], spec["init_args"]))
    cli = PruneCLI(args=args, save_config_callback=None, trainer_defaults={"callbacks": [watch]})
    trainer = cli.trainer
    if trainer.interrupted:
        raise SystemExit("Error: interrupted")
    if trainer.is_global_zero:
        registries = [callback for callback in trainer.callbacks if isinstance(callback, ScoreRegistry)]  # type: ignore[attr-defined]
        saved = registries[0].saved_fraction if registries else 0.0
        times = {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}
        found = {"metrics": _numbers(trainer), "saved": saved, **times, "curve": watch.curve}
        write_json(Path(spec["result"]), spec | found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
