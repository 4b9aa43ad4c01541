"""Train on digits with all the data and with InfoBatch, three seeds each, and print what was saved.

Run with ``make demo`` or ``python -m examples.digits.demo``.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import lightning.pytorch as L
import torch
from rich.console import Console
from rich.table import Table

from examples.digits.task import DigitsData, DigitsModel
from lightning_prune import InfoBatch, ScoreRegistry


def train(prune_ratio: float | None, seed: int, epochs: int) -> dict[str, float]:
    """Train once; return test accuracy, the saved share of sample-steps, and the seconds that `fit` took."""
    L.seed_everything(seed, verbose=False)
    registry = ScoreRegistry()
    callbacks = [registry] if prune_ratio is None else [registry, InfoBatch(prune_ratio=prune_ratio)]
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
    start = time.perf_counter()
    model = DigitsModel()
    trainer.fit(model, data)
    seconds = time.perf_counter() - start
    accuracy = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
    return {"accuracy": 100 * accuracy, "saved": registry.saved_fraction, "seconds": seconds}


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
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # such small layers are slower on several threads
    train(None, 0, 1)  # warm-up: the first fit pays for imports and allocations
    methods = {"full data": None, "InfoBatch(prune_ratio=0.5)": 0.5}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for seed in range(args.seeds):
        for name, prune_ratio in methods.items():  # interleaved, so that a busy minute meets both
            runs[name].append(train(prune_ratio, seed, args.epochs))
    show(runs)


if __name__ == "__main__":
    main()
