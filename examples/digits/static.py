"""Score digits by every static method, train on what each keeps, and print tables.

The first: test accuracy where 30, 50 and 70 % are pruned. The others, with 20 % wrong labels: the share of wrong labels
among what is kept, and the accuracy, on right labels, of what trains on it. Run with ``python -m
examples.digits.static``; it takes a few minutes on one thread. ``--data corrupted`` makes two more, with a fifth of the
training images corrupted, as in TDDS's Table 9.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import product
from typing import Any, final

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from examples.digits.task import DigitsClassifier, DigitsData, DigitsModel
from examples.experiments.reporting import add_seeds, seeds_of, spread
from lightning_prune.data import corrupt_images, inject_label_noise
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
IN_ONE_PASS = ("Moderate", "Influence", "MoSo", "ELFS, pseudo-clean", "SSP", "DeepFool")
CHOOSING = ("ContextualDiversity", "CRAIG", "DP", "ELFS", "GLISTER", "Herding", "KCenter", "Prune4ReL")
SHARES = {"right": "", "noisy": "wrong labels", "corrupted": "corrupted images"}
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


def damaged(train: TensorDataset, kind: str, seed: int) -> tuple[TensorDataset, Tensor]:
    """Return a dataset of which a fifth has wrong labels or corrupted images, and a mask ``(n,)`` of those."""
    images, targets = train.tensors
    generator = torch.Generator().manual_seed(seed)
    if kind == "noisy":
        noisy, flipped = inject_label_noise(targets, "symmetric", NOISE, 10, generator=generator)
        return TensorDataset(images, noisy), flipped
    if kind == "corrupted":
        bytes_, kinds = corrupt_images((255 * images).round().to(torch.uint8), NOISE / 5, generator=generator)
        return TensorDataset(torch.where((kinds >= 0).view(-1, 1, 1, 1), bytes_ / 255, images), targets), kinds >= 0
    return train, torch.zeros(len(train), dtype=torch.bool)


def score_once(name: str, model: DigitsClassifier, features: Features, train: TensorDataset, seed: int) -> ScoreFile:
    """Score by a method that takes one pass of the trained model."""
    if name == "DeepFool":
        return score_module(name, model, DataLoader(train, 256), progress=False)
    method, _, pseudo_clean = name.partition(", ")
    parameters: dict[str, Any] = {"pseudo_clean": True} if pseudo_clean else {}
    return score_features(method, features, seed=seed, **parameters)


def score(train: TensorDataset, seed: int, epochs: int, methods: Collection[str] | None = None) -> Runs:
    """Score by every method, or by some, from one run; return a pruning callback by name and ratio."""
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
    features = collect_features(model, DataLoader(train, 256), progress=False)
    files = {
        type(one).__name__: ScoreFile.make(
            one.compute(), method=type(one).__name__, keep=one.keep, columns=one.columns()
        )
        for one in trackers
    }
    for name in IN_ONE_PASS:
        if name in (methods or IN_ONE_PASS):
            files[name] = score_once(name, model, features, train, seed)
    draw = torch.rand(len(train), generator=torch.Generator().manual_seed(seed))
    runs: Runs = {"random": lambda ratio: StaticPruning(draw, ratio, seed=seed)}
    runs |= {name: partial(StaticPruning, file, seed=seed) for name, file in files.items()}
    runs[SCALED] = runs["TDDS"]
    runs["DUAL, beta sampling"] = lambda ratio: StaticPruning(files["DUAL"], ratio, "beta", seed=seed)
    cut = {"hard_cutoff": 0.1}
    runs["CCS on AUM, 10 % cut"] = lambda ratio: StaticPruning(files["AUM"], ratio, "ccs", selector_args=cut, seed=seed)
    for name in CHOOSING:  # the choice depends on how many are chosen
        runs[name] = partial(chosen, name, features, seed)
    return {name: run for name, run in runs.items() if name in (methods or runs)}


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
    parser.add_argument("--data", nargs="*", choices=SHARES, default=["right", "noisy"], help="only these")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # such small layers are slower on several threads
    start = time.process_time()
    full: dict[str, list[float]] = {kind: [] for kind in args.data}
    accuracies: dict[str, Results] = {kind: {} for kind in args.data}
    kept: dict[str, Results] = {kind: {} for kind in args.data}
    for seed, kind in product(seeds_of(args), args.data):
        data = DigitsData(split_seed=seed)
        data.setup("fit")
        train, bad = damaged(data.train, kind, seed)
        full[kind].append(accuracy(fit(train, seed + 100, args.epochs), data.held_out))
        for (name, make), ratio in product(score(train, seed, args.epochs, args.methods).items(), RATIOS):
            run = make(ratio)
            value = accuracy(trained(train, run, name, seed, args.epochs), data.held_out)
            accuracies[kind].setdefault(name, {}).setdefault(ratio, []).append(value)
            share = float(bad[run.choose(len(train)).indices].float().mean())
            kept[kind].setdefault(name, {}).setdefault(ratio, []).append(share)
    print(f"Means ± standard deviations over {args.seeds} seeds.\n")
    for kind, words in ((kind, SHARES[kind]) for kind in args.data):
        print(f"Full data: {statistics.mean(full[kind]):.1f} %.\n")
        if words:
            print("\n".join(table(f"{words} among the kept, {NOISE:.0%} in all", kept[kind], 2)), end="\n\n")
        of_what = f", {NOISE:.0%} {words}" if words else ""
        print("\n".join(table(f"test accuracy, %{of_what}", accuracies[kind], 1)), end="\n\n")
    print(f"{time.process_time() - start:.0f} s of CPU time.")


if __name__ == "__main__":
    main()
