"""Score digits by every static method, train on what each keeps, and print three tables.

The first: test accuracy where 30, 50 and 70 % are pruned. The others, with 20 % wrong labels: the share of wrong labels
among what is kept, and the accuracy, on right labels, of what trains on it. Run with ``python -m
examples.digits.static``; it takes a few minutes on one thread.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import final

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from examples.digits.task import DigitsClassifier, DigitsData, DigitsModel
from examples.experiments.reporting import add_seeds, seeds_of, spread
from lightning_prune.data import inject_label_noise
from lightning_prune.scoring import (
    AUM,
    DUAL,
    EL2N,
    TDDS,
    DynUnc,
    Entropy,
    Features,
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
SCALED = "TDDS, loss scaled"
CHOOSING = ("ContextualDiversity", "CRAIG", "DP", "ELFS", "GLISTER", "Herding", "KCenter", "Prune4ReL")
Results = dict[str, dict[float, list[float]]]
Runs = dict[str, Callable[[float], StaticPruning]]


@final
class ScaledModel(DigitsClassifier):
    """Multiplies the loss of a batch by the mean of its samples' scores, as TDDS's published code does."""

    def __init__(self) -> None:
        same = DigitsModel(width=8)
        super().__init__(same.body, same.head, same.lr)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        *batch, scores = batch
        return super().training_step(batch, batch_idx) * scores.mean()


def scaled(train: TensorDataset, scores: Tensor) -> TensorDataset:
    """Return a dataset with its samples' scores, from 0 to 1."""
    low, high = scores.min(), scores.max()
    return TensorDataset(*train.tensors, (scores - low) / (high - low))


def fit(train: TensorDataset, seed: int, epochs: int, callback: L.Callback | None = None) -> DigitsClassifier:
    """Train once and return the model."""
    L.seed_everything(seed, verbose=False)
    model = ScaledModel() if len(train.tensors) == 3 else DigitsModel(width=8)  # a quarter as wide
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
def accuracy(model: DigitsClassifier, held_out: TensorDataset) -> float:
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
    files["Influence"] = score_features("Influence", features, seed=seed)
    files["MoSo"] = score_features("MoSo", features)
    files["ELFS, pseudo-clean"] = score_features("ELFS", features, seed=seed, pseudo_clean=True)
    files["SSP"] = score_features("SSP", features, seed=seed)
    files["DeepFool"] = score_module("DeepFool", model, loader, progress=False)
    draw = torch.rand(len(train), generator=torch.Generator().manual_seed(seed))
    runs: Runs = {"random": lambda ratio: StaticPruning(draw, ratio, seed=seed)}
    runs |= {name: partial(StaticPruning, file, seed=seed) for name, file in files.items()}
    runs[SCALED] = runs["TDDS"]
    runs["DUAL, beta sampling"] = lambda ratio: StaticPruning(files["DUAL"], ratio, "beta", seed=seed)
    cut = {"hard_cutoff": 0.1}
    runs["CCS on AUM, 10 % cut"] = lambda ratio: StaticPruning(files["AUM"], ratio, "ccs", selector_args=cut, seed=seed)
    for name in CHOOSING:  # the choice depends on how many are chosen
        runs[name] = partial(chosen, name, features, seed)
    return runs


def chosen(name: str, features: Features, seed: int, ratio: float) -> StaticPruning:
    return StaticPruning(score_features(name, features, prune_ratio=ratio, seed=seed), ratio, seed=seed)


def table(title: str, results: Results, digits: int) -> Iterator[str]:
    """Yield the lines of a table of means and standard deviations over the seeds, in markdown."""
    yield f"| {title} | " + " | ".join(f"{ratio:.0%} pruned" for ratio in RATIOS) + " |"
    yield "|---|" + "---|" * len(RATIOS)
    for name, by_ratio in results.items():
        cells = (spread(values, digits) for values in by_ratio.values())
        yield f"| {name} | " + " | ".join(cells) + " |"


def trained(train: TensorDataset, run: StaticPruning, name: str, seed: int, epochs: int) -> DigitsClassifier:
    """Train a new model, not the one that scored, on what a method keeps."""
    if name == SCALED and isinstance(run.scores, ScoreFile):
        train = scaled(train, run.scores.scores)
    return fit(train, seed + 100, epochs, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    add_seeds(parser, 3)
    parser.add_argument("--methods", nargs="*", help="only these")
    both = ["right", "noisy"]
    parser.add_argument("--labels", nargs="*", choices=both, default=both, help="only these")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # such small layers are slower on several threads
    start = time.process_time()
    full: dict[str, list[float]] = {"right": [], "noisy": []}
    accuracies: dict[str, Results] = {"right": {}, "noisy": {}}
    wrong: Results = {}
    for seed in seeds_of(args):
        data = DigitsData(split_seed=seed)
        data.setup("fit")
        images, targets = data.train.tensors
        generator = torch.Generator().manual_seed(seed)
        noisy, flipped = inject_label_noise(targets, "symmetric", NOISE, 10, generator=generator)
        trains = {"right": data.train, "noisy": TensorDataset(images, noisy)}
        for labels, train in ((labels, trains[labels]) for labels in args.labels):
            full[labels].append(accuracy(fit(train, seed + 100, args.epochs), data.held_out))
            runs = score(train, seed, args.epochs)
            for name, ratio in product([name for name in runs if name in (args.methods or runs)], RATIOS):
                run = runs[name](ratio)
                value = accuracy(trained(train, run, name, seed, args.epochs), data.held_out)
                accuracies[labels].setdefault(name, {}).setdefault(ratio, []).append(value)
                if labels == "noisy":
                    share = float(flipped[run.choose(len(noisy)).indices].float().mean())
                    wrong.setdefault(name, {}).setdefault(ratio, []).append(share)
    print(f"Means ± standard deviations over {args.seeds} seeds.\n")
    for labels in args.labels:
        print(f"Full data: {statistics.mean(full[labels]):.1f} %.\n")
        if labels == "noisy":
            print("\n".join(table(f"wrong labels among the kept, {NOISE:.0%} in all", wrong, 2)), end="\n\n")
        kind = "" if labels == "right" else f", {NOISE:.0%} wrong labels"
        print("\n".join(table(f"test accuracy, %{kind}", accuracies[labels], 1)), end="\n\n")
    print(f"{time.process_time() - start:.0f} s of CPU time.")


if __name__ == "__main__":
    main()
