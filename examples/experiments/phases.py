"""OrderDP's Table 9 and Figure 1 on digits: ``python -m examples.experiments.phases [--seeds 10] [--ratio 0.61]``.

Accuracy and gradient norm by phase of the training, the norm's rolling deviation, and its correlation with accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import final

import lightning.pytorch as L
import torch

from examples.digits.task import DigitsData, DigitsModel
from examples.experiments.reporting import add_seeds, seeds_of, spread, table
from examples.experiments.training import quiet, train
from lightning_prune import UCB, EpsilonGreedy, InfoBatch, OrderDP, PruningCallback
from lightning_prune.analysis import norm_accuracy_correlation, rolling_std

EPOCHS, WINDOW = 20, 5
PHASES = {
    "0-30 %": (0, 6),
    "30-50 %": (6, 10),
    "50-70 %": (10, 14),
    "70-100 %": (14, 20),
    "last epoch, 95-100 %": (19, 20),
}
METHODS: dict[str, Callable[[float], PruningCallback | None]] = {
    "EpsilonGreedy": lambda ratio: EpsilonGreedy(ratio, every_n_epochs=2),
    "UCB": lambda ratio: UCB(ratio, every_n_epochs=2),
    "InfoBatch": lambda ratio: InfoBatch(min(0.99, ratio / 0.75), anneal_ratio=1.0),  # some 75 % are below the mean
    "OrderDP": lambda ratio: OrderDP((1 - ratio) ** 0.5, (1 - ratio) ** 0.5),
    "full data": lambda ratio: None,
}


@final
class Accuracies(L.Callback):
    """Notes the validation accuracy of each epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.values.append(100 * float(trainer.callback_metrics["val_accuracy"]))


def run(name: str, ratio: float, seed: int, *, gradients: bool = True) -> dict[str, torch.Tensor]:
    """Train once; return accuracy and norm of the gradient that was trained on, epoch by epoch, and what was saved."""
    L.seed_everything(seed, verbose=False)
    watch = Accuracies()
    history, registry, _ = train(
        METHODS[name](ratio), DigitsModel(width=16), DigitsData(), EPOCHS, [watch],
        validate_every=1, gradient_every_n_epochs=int(gradients),
    )  # fmt: skip
    norms = [values["grad_norm"] * values["grad_norm_ratio"] for values in history if "grad_norm" in values]
    saved = torch.tensor([registry.saved_fraction])
    return {"accuracy": torch.tensor(watch.values), "norm": torch.tensor(norms), "saved": saved}


def by_phase(runs: list[dict[str, torch.Tensor]], key: str, digits: int) -> list[str]:
    """Return mean and deviation over the runs of a value's mean in each phase."""
    return [spread([float(one[key][a:b].mean()) for one in runs], digits) for a, b in PHASES.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_seeds(parser, 10)
    parser.add_argument("--ratio", type=float, default=0.61, help="share to prune (default: 0.61, the paper's)")
    args = parser.parse_args()
    quiet()
    start, accuracies, norms = time.process_time(), [], []
    for name in METHODS:
        runs = [run(name, args.ratio, seed) for seed in seeds_of(args)]
        saved = statistics.fmean(float(one["saved"]) for one in runs)
        steady = spread([float(rolling_std(one["norm"], WINDOW).mean()) for one in runs])
        linear = spread([norm_accuracy_correlation(one["norm"], one["accuracy"]) for one in runs], 2)
        accuracies.append([name, f"{100 * saved:.0f} %", *by_phase(runs, "accuracy", 1), linear])
        norms.append([name, *by_phase(runs, "norm", 3), steady])
    print("Accuracy in %, and its correlation with the norm of the gradient over the epochs:\n")
    print(table(["method", "saved", *PHASES, "correlation"], accuracies))
    print("Norm of the gradient that was trained on:\n")
    print(table(["norm with", *PHASES, f"deviation per {WINDOW} epochs"], norms))
    print(f"{time.process_time() - start:.0f} s of CPU time, {args.seeds} seeds.")


if __name__ == "__main__":
    main()
