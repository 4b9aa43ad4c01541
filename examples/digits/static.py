"""Score digits by every static method, train on what each keeps, and print two tables.

The first: test accuracy where 30, 50 and 70 % are pruned. The second: with 20 % wrong labels, the share of wrong labels
among what is kept. Run with ``python -m examples.digits.static``; it takes a few minutes on one thread.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from examples.digits.task import DigitsData, DigitsModel
from examples.experiments.reporting import add_seeds, seeds_of, spread
from lightning_prune.data import inject_label_noise
from lightning_prune.scoring import (
    AUM,
    DUAL,
    EL2N,
    TDDS,
    DynUnc,
    Entropy,
    Forgetting,
    GraNd,
    LeastConfidence,
    Margin,
    ScoreFile,
    ScoreRecorder,
    SmallLoss,
    StaticPruning,
    collect_features,
    score_features,
    score_module,
)

RATIOS = (0.3, 0.5, 0.7)
NOISE = 0.2
CHOOSING = ("ContextualDiversity", "CRAIG", "GLISTER", "Herding", "KCenter", "Prune4ReL")
Runs = dict[str, Callable[[float], StaticPruning]]


def fit(train: TensorDataset, seed: int, epochs: int, callback: L.Callback | None = None) -> DigitsModel:
    """Train once and return the model."""
    L.seed_everything(seed, verbose=False)
    model = DigitsModel(width=8)  # a quarter as wide
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if callback is None else [callback],
    )
    trainer.fit(model, DataLoader(train, 64, shuffle=True))
    return model.eval()


@torch.no_grad()
def accuracy(model: DigitsModel, held_out: TensorDataset) -> float:
    """Return the accuracy on the test images, in percent."""
    images, targets = held_out.tensors
    return 100 * float((model(images).argmax(1) == targets).float().mean())


def score(train: TensorDataset, seed: int, epochs: int) -> Runs:
    """Score by every method, from one run; return a pruning callback by name and ratio."""
    trackers = [
        TDDS(window=5),
        DUAL(window=5, num_epochs=epochs),
        DynUnc(window=5),
        EL2N(num_epochs=5),
        GraNd(num_epochs=5),
        Forgetting(),
        AUM(),
        Entropy(),
        LeastConfidence(),
        Margin(),
        SmallLoss(),
    ]
    model = fit(train, seed, epochs, ScoreRecorder(trackers))
    loader = DataLoader(train, 256)
    features = collect_features(model, loader, progress=False)
    files = {
        type(one).__name__: ScoreFile.make(
            one.compute(), method=type(one).__name__, keep=one.keep, columns=one.columns()
        )
        for one in trackers
    }
    files["Moderate"] = score_features("Moderate", features)
    files["SSP"] = score_features("SSP", features, seed=seed)
    files["DeepFool"] = score_module("DeepFool", model, loader, progress=False)
    draw = torch.rand(len(train), generator=torch.Generator().manual_seed(seed))
    runs: Runs = {"random": lambda ratio: StaticPruning(draw, ratio, seed=seed)}
    runs |= {name: lambda ratio, file=file: StaticPruning(file, ratio, seed=seed) for name, file in files.items()}
    runs["DUAL, beta sampling"] = lambda ratio: StaticPruning(files["DUAL"], ratio, "beta", seed=seed)
    cut = {"hard_cutoff": 0.1}
    runs["CCS on AUM, 10 % cut"] = lambda ratio: StaticPruning(files["AUM"], ratio, "ccs", selector_args=cut, seed=seed)
    for name in CHOOSING:  # the choice depends on how many are chosen
        runs[name] = lambda ratio, name=name: StaticPruning(
            score_features(name, features, prune_ratio=ratio, seed=seed), ratio, seed=seed
        )
    return runs


def table(title: str, results: dict[str, dict[float, list[float]]], digits: int) -> Iterator[str]:
    """Yield the lines of a table of means and standard deviations over the seeds, in markdown."""
    yield f"| {title} | " + " | ".join(f"{ratio:.0%} pruned" for ratio in RATIOS) + " |"
    yield "|---|" + "---|" * len(RATIOS)
    for name, by_ratio in results.items():
        cells = (spread(values, digits) for values in by_ratio.values())
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    add_seeds(parser, 3)
    parser.add_argument("--methods", nargs="*", help="only these")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # such small layers are slower on several threads
    start = time.process_time()
    full: list[float] = []
    accuracies: dict[str, dict[float, list[float]]] = {}
    wrong: dict[str, dict[float, list[float]]] = {}
    for seed in seeds_of(args):
        data = DigitsData(split_seed=seed)
        data.setup("fit")
        full.append(accuracy(fit(data.train, seed + 100, args.epochs), data.held_out))
        for name, run in score(data.train, seed, args.epochs).items():
            if args.methods and name not in args.methods:
                continue
            for ratio in RATIOS:
                model = fit(data.train, seed + 100, args.epochs, run(ratio))  # a new model, not the one that scored
                accuracies.setdefault(name, {}).setdefault(ratio, []).append(accuracy(model, data.held_out))
        images, targets = data.train.tensors
        generator = torch.Generator().manual_seed(seed)
        noisy, flipped = inject_label_noise(targets, "symmetric", NOISE, 10, generator=generator)
        for name, run in score(TensorDataset(images, noisy), seed, args.epochs).items():
            for ratio in RATIOS:
                kept = run(ratio).choose(len(noisy)).indices
                wrong.setdefault(name, {}).setdefault(ratio, []).append(float(flipped[kept].float().mean()))
    print(f"Full data: {statistics.mean(full):.1f} %. Means ± standard deviations over {args.seeds} seeds.\n")
    print("\n".join(table("test accuracy, %", accuracies, 1)), end="\n\n")
    print("\n".join(table(f"wrong labels among the kept, {NOISE:.0%} in all", wrong, 2)))
    print(f"\n{time.process_time() - start:.0f} s of CPU time.")


if __name__ == "__main__":
    main()
