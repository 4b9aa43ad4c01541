"""Train on digits with wrong labels: InfoBatch alone, and under AlignPrune in its forms.

Run with ``python -m examples.digits.noise``; prints a Markdown table. Columns: test accuracy after the run, mean and
standard deviation over the seeds; the share of wrong labels among what the epochs kept that alignment (or, for
InfoBatch, the loss) had chosen; the share of sample-steps that was not trained.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import lightning.pytorch as L
import torch
from torch import nn

from examples.digits.task import DigitsModel
from examples.experiments.data import NoisyDigits
from lightning_prune import AlignPrune, InfoBatch, PruningCallback, PruningMonitor, ScoreRegistry

NUM_CLEAN = 100
"""Size of the clean reference set."""

METHODS: dict[str, Callable[[int, list[int]], PruningCallback | None]] = {
    "full data": lambda window, clean: None,
    "InfoBatch": lambda window, clean: InfoBatch(),
    "AlignPrune, clean reference": lambda window, clean: AlignPrune(InfoBatch(), clean, window),
    "AlignPrune, clean reference, rescale=False": lambda window, clean: AlignPrune(
        InfoBatch(), clean, window, rescale=False
    ),
    "AlignPrune": lambda window, clean: AlignPrune(InfoBatch(), window=window),
    "AlignPrune, rescale=False": lambda window, clean: AlignPrune(InfoBatch(), window=window, rescale=False),
}


class NoisyModel(DigitsModel):
    """A layer of 128 units, which learns the rule well before it memorises the exceptions, as large networks do."""

    def __init__(self) -> None:
        super().__init__(lr=0.05)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(name: str, rate: float, seed: int, kind: str, epochs: int, window: int) -> dict[str, float]:
    """Train once; return the test accuracy, the share of wrong labels that was kept, and the saved share."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # such small layers are slower on several threads
    L.seed_everything(seed, verbose=False)
    data = NoisyDigits(kind, rate, split_seed=seed)
    data.setup("fit")
    clean = (~data.train.flipped).nonzero().squeeze(1)[:NUM_CLEAN].tolist()
    method, registry, monitor = METHODS[name](window, clean), ScoreRegistry(), PruningMonitor(flipped="flipped")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
        callbacks=[registry, *([] if method is None else [method]), monitor],
    )
    model = NoisyModel()
    trainer.fit(model, data)
    kept = [values["noise_ratio"] for values in monitor.history[window : int(epochs * 0.875)]]
    return {
        "accuracy": trainer.test(model, data, verbose=False)[0]["test_accuracy"],
        "noise": statistics.mean(kept),
        "saved": registry.saved_fraction,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="symmetric")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    cases = list(product(METHODS, args.rates, range(args.seeds)))
    names, rates, seeds = zip(*cases, strict=True)
    shared = ([value] * len(cases) for value in (args.kind, args.epochs, args.window))
    with ProcessPoolExecutor(args.jobs) as pool:
        results = dict(zip(cases, pool.map(train, names, rates, seeds, *shared), strict=True))
    print(f"| {args.kind} noise | method | accuracy, % | wrong labels kept, % | saved, % |")
    print("|---|---|---|---|---|")
    for rate, name in product(args.rates, METHODS):
        runs = [results[name, rate, seed] for seed in range(args.seeds)]
        mean = {key: 100 * statistics.mean(run[key] for run in runs) for key in runs[0]}
        spread = 100 * statistics.stdev(run["accuracy"] for run in runs) if len(runs) > 1 else 0.0
        cells = f"{mean['accuracy']:.1f} ± {spread:.1f} | {mean['noise']:.1f} | {mean['saved']:.1f}"
        print(f"| {rate:.0%} | {name} | {cells} |")


if __name__ == "__main__":
    main()
