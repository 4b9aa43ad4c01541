"""Train on digits with all the data and with InfoBatch, three seeds each; print what was saved, and write a report.

Run with ``make demo`` or ``python -m examples.digits.demo``. The report is of the first seed's two runs.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import final

import lightning.pytorch as L
import torch
from rich.console import Console
from rich.table import Table

from examples.digits.task import DigitsData, DigitsModel
from lightning_prune import InfoBatch, PruningReport, ScoreRegistry
from lightning_prune.report import RunRecord, write_report


@final
class Watch(L.Callback):
    """Measures the seconds of a fit, up to the end of its training."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


def train(prune_ratio: float | None, seed: int, epochs: int, report: PruningReport | None = None) -> dict[str, float]:
    """Train once; return test accuracy, the saved share of sample-steps, and the seconds that it took."""
    L.seed_everything(seed, verbose=False)
    registry, watch = ScoreRegistry(), Watch()
    method = [] if prune_ratio is None else [InfoBatch(prune_ratio=prune_ratio)]
    callbacks = [watch, registry, *method, *([] if report is None else [report])]
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
        callbacks=callbacks,
    )
    data = DigitsData(split_seed=seed)
    model = DigitsModel()
    trainer.fit(model, data)
    accuracy = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
    return {"accuracy": 100 * accuracy, "saved": registry.saved_fraction, "seconds": watch.seconds}


def show(runs: dict[str, list[dict[str, float]]]) -> None:
    """Print one row per method: means over the seeds."""
    table = Table(title="digits: 1,437 training images, a small CNN", title_justify="left")
    columns = ("method", "test accuracy", "sample-steps saved", "wall time", "speed-up", "ideal")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    means = {
        name: {key: statistics.mean(run[key] for run in results) for key in results[0]}
        for name, results in runs.items()
    }
    full = means["full data"]["seconds"]
    for name, mean in means.items():
        spread = statistics.stdev(run["accuracy"] for run in runs[name]) if len(runs[name]) > 1 else 0.0
        table.add_row(
            name,
            f"{mean['accuracy']:.2f} ± {spread:.2f} %",
            f"{100 * mean['saved']:.1f} %",
            f"{mean['seconds']:.1f} s",
            f"{full / mean['seconds']:.2f}x",
            f"{1 / (1 - mean['saved']):.2f}x",
        )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", default="demo_report.html", help="page to write; empty: none")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # such small layers are slower on several threads
    train(None, 0, 1)  # warm-up: the first fit pays for imports and allocations
    methods = {"full data": None, "InfoBatch(prune_ratio=0.5)": 0.5}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    records: list[RunRecord] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name, prune_ratio in methods.items():  # interleaved, so that a busy minute meets both
                report = PruningReport(Path(folder) / f"{name.partition('(')[0]}.json", metric="val_accuracy")
                runs[name].append(train(prune_ratio, seed, args.epochs, report if seed == 0 else None))
                records += [report.record] if report.record is not None else []
    show(runs)
    if args.report:
        print(f"See what was pruned: open {write_report(records, args.report)} in a browser.")


if __name__ == "__main__":
    main()
