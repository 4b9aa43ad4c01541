"""Against fewer epochs, where a choice by losses is doubtful: ``python -m examples.experiments.advised [--seeds 6]``.

Two trainings on digits: one in which little is learnt, by a low learning rate and large batches, and one in which the
losses of two epochs have nothing in common, by a learning rate at which it does not learn.
"""

from __future__ import annotations

import argparse
import json
import statistics

from examples.experiments.reporting import add_seeds, seeds_of, spread, table
from lightning_prune.cli import PruneCLI

SAVE, EPOCHS = 0.4, 10
SETTINGS = {
    "little learnt": ["--model.width=2", "--model.lr=0.02", "--data.batch_size=128"],
    "unstable": ["--model.width=2", "--model.lr=1.0", "--data.batch_size=64"],
}
METHODS = ("InfoBatch", "OrderDP", "RandomPruning")
FEWER = f"full data, {round(EPOCHS * (1 - SAVE))} of {EPOCHS} epochs"


def arguments(setting: str, method: str) -> list[str]:
    """Return the arguments of a run: of full data for fewer epochs, or of a method with a budget."""
    epochs = round(EPOCHS * (1 - SAVE)) if method == FEWER else EPOCHS
    args = [*SETTINGS[setting], f"--trainer.max_epochs={epochs}"]
    if method == FEWER:
        return args
    budget = {"class_path": "Budget", "init_args": {"save": SAVE, "base": {"class_path": method}}}
    return [*args, f"--trainer.callbacks={json.dumps(budget)}"]


def train(setting: str, method: str, seed: int) -> float:
    """Return the accuracy of a run."""
    args = ["fit", "--config=examples/experiments/digits.yaml", f"--seed_everything={seed}"]
    args += ["--trainer.enable_progress_bar=false", *arguments(setting, method)]
    cli = PruneCLI(args=args, save_config_callback=None)
    return float(cli.trainer.callback_metrics["val_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_seeds(parser, 6)
    args = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        found = {name: [train(setting, name, seed) for seed in seeds_of(args)] for name in (FEWER, *METHODS)}
        for name, values in found.items():
            gains = [100 * (value - fewer) for value, fewer in zip(values, found[FEWER], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5
            rows.append([setting, name, spread(values, 4), f"{statistics.fmean(gains):+.1f} ± {error:.1f}"])
    print(table(["training", "method", "val_accuracy", "against fewer epochs, points"], rows))


if __name__ == "__main__":
    main()
