"""Digits with wrong labels: InfoBatch alone, and under AlignPrune. ``python -m examples.experiments.noise NAME``.

Prints a Markdown table of means over the seeds: the accuracy on clean test images ± its standard deviation; its gain
over InfoBatch's with the same seed ± its standard error; the share of wrong labels among the kept, in the epochs in
which the method ranks as it is named; the share of sample-steps saved. Each seed has its own split, noise and weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product, repeat
from typing import Any, NamedTuple, final

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.digits.task import DigitsClassifier, DigitsData, DigitsModel
from examples.experiments.reporting import add_seeds, count, seeds_of, spread
from examples.experiments.training import quiet, train
from lightning_prune import (
    AlignPrune,
    InfoBatch,
    OrderDP,
    PruningCallback,
    RandomPruning,
    RePB,
    Selection,
    SeTa,
)
from lightning_prune.core.table import SampleTable
from lightning_prune.data import inject_label_noise
from lightning_prune.functional import infobatch


@final
class NoisyDigits(L.LightningDataModule):
    """Digits of which a share of the training labels is wrong; the dataset's ``flipped`` ``(n,)`` says which.

    Args:
        noise: Kind of noise, see `lightning_prune.data.inject_label_noise`.
        rate: Share of wrong labels.
        batch_size: Samples in a batch.
        split_seed: Seed of the split and of the noise.
    """

    def __init__(self, noise: str = "symmetric", rate: float = 0.4, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.clean = DigitsData(batch_size, split_seed)
        self.noise = noise
        self.rate = rate

    def setup(self, stage: str) -> None:
        self.clean.setup(stage)
        images, labels = self.clean.train.tensors
        generator = torch.Generator().manual_seed(self.clean.split_seed)
        noisy, self.flipped = inject_label_noise(labels, self.noise, self.rate, 10, generator=generator)
        self.train = TensorDataset(images, noisy)
        self.train.flipped = self.flipped  # type: ignore[attr-defined]  # for the monitor

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.clean.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.clean.val_dataloader()


@final
class NoisyModel(DigitsClassifier):
    """A layer of 128 units, which learns the rule well before it memorises the exceptions, as large networks do."""

    def __init__(self) -> None:
        DigitsModel()  # the documented runs drew its random weights first
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
        super().__init__(body, nn.Linear(128, 10), lr=0.05)


@final
class CalibratedInfoBatch(PruningCallback):
    """InfoBatch with the reference's help, but without alignment (AlignPrune's supplement, B.2.4): pruned is what has a
    loss further from the mean of the reference's than their deviation. The paper gives no more detail.

    Args:
        reference: Training samples that are known to be clean.
        prune_ratio: Share of those out of the region that is left out.
        anneal_ratio: Share of the run that prunes.
    """

    weighs_losses = True

    def __init__(self, reference: list[int], prune_ratio: float = 0.5, anneal_ratio: float = 0.875) -> None:
        super().__init__()
        self.reference = reference
        self.prune_ratio = prune_ratio
        self.anneal_ratio = anneal_ratio

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        if epoch >= self.anneal_ratio * (registry.max_epochs or epoch + 1):
            return Selection.all(registry.num_samples)
        known = registry.losses[torch.tensor(self.reference)]
        inside = (registry.losses - known.mean()).abs() <= known.std()
        return infobatch(inside.float(), self.prune_ratio, generator=generator)  # those outside are below the mean


Make = Callable[[Tensor], PruningCallback | None]
"""Makes a method, given which labels are wrong ``(n,)``."""


@final
class Setting(NamedTuple):
    """One row of a table."""

    make: Make
    kind: str = "symmetric"
    rate: float = 0.4
    epochs: int = 40
    model: Callable[[], L.LightningModule] = NoisyModel


def align(
    window: int = 10,
    size: int = 0,
    wrong: float = 0.0,
    base: Callable[[], PruningCallback] = InfoBatch,
    **arguments: Any,
) -> Make:
    """Return a maker of AlignPrune; its reference is ``size`` samples, if any, a share ``wrong`` of them wrong."""

    def make(flipped: Tensor) -> AlignPrune:
        reference = reference_ids(flipped, size, wrong) if size else "self"
        return AlignPrune(base(), reference, window, **arguments)

    return make


def alone(make: Callable[[], PruningCallback]) -> Make:
    return lambda flipped: make()


def reference_ids(flipped: Tensor, size: int, wrong: float) -> list[int]:
    """Return ``size`` training indices, of which a share ``wrong`` has wrong labels."""
    bad, good = flipped.nonzero().squeeze(1), (~flipped).nonzero().squeeze(1)
    num_bad = round(wrong * size)
    return torch.cat([bad[:num_bad], good[: size - num_bad]]).tolist()


METHODS: dict[str, Make] = {
    "full data": lambda flipped: None,
    "RandomPruning": lambda flipped: RandomPruning(0.25),
    "OrderDP": lambda flipped: OrderDP(0.866, 0.866),
    "InfoBatch": alone(InfoBatch),
    "AlignPrune": align(),
    "AlignPrune, rescale=False": align(rescale=False),
}
NOISES = {
    "clean labels": ("symmetric", 0.0),
    **{
        f"{name} {rate:.0%}": (kind, rate)
        for name, kind in (("symmetric", "symmetric"), ("asymmetric", "asymmetric_cifar10"), ("pair-flip", "pairflip"))
        for rate in (0.2, 0.4, 0.5)
    },
}
BASES: dict[str, Callable[[], PruningCallback]] = {
    "InfoBatch": InfoBatch,
    "SeTa": SeTa,
    "RePB": RePB,
    "OrderDP": partial(OrderDP, 0.866, 0.866),
}
BASE = ("InfoBatch",)
EXPERIMENTS: dict[str, dict[tuple[str, ...], Setting]] = {
    "kinds": {
        (noise, name): Setting(make, kind, rate)
        for (noise, (kind, rate)), (name, make) in product(NOISES.items(), METHODS.items())
    },
    "next": {  # the supplement's own "symmetric" noise, A.3, at its rates
        (f"next class {rate:.0%}", name): Setting(METHODS[name], "symmetric_next", rate)
        for rate, name in product((0.2, 0.5), (*BASE, "AlignPrune", "AlignPrune, rescale=False"))
    },
    "bases": {
        (name,): Setting(make)
        for base, make_base in BASES.items()
        for name, make in (
            (base, alone(make_base)),
            (f"AlignPrune on {base}", align(base=make_base, rescale=False)),
        )
    },
    "calibrated": {  # by the same 100 clean samples
        BASE: Setting(METHODS["InfoBatch"]),
        ("calibrated InfoBatch",): Setting(lambda flipped: CalibratedInfoBatch(reference_ids(flipped, 100, 0.0))),
        **{(f"AlignPrune, rescale={rescale}",): Setting(align(size=100, rescale=rescale)) for rescale in (True, False)},
    },
    "long": {  # the paper's window in a run of its length
        (name,): Setting(make, rate=0.5, epochs=200)
        for name, make in (
            ("InfoBatch", METHODS["InfoBatch"]),
            ("AlignPrune", align(25)),
            ("AlignPrune, missing=hold", align(25, missing="hold")),
        )
    },
    "cnn": {  # which memorises within the first window
        (name,): Setting(METHODS[name], model=partial(DigitsModel, width=16))
        for name in ("full data", "RandomPruning", *BASE, "AlignPrune, rescale=False")
    },
    "windows": {
        BASE: Setting(METHODS["InfoBatch"], epochs=100),
        **{(f"window {n}",): Setting(align(n, rescale=False), epochs=100) for n in (2, 3, 5, 10, 20, 50)},
    },
    "correlations": {
        BASE: Setting(METHODS["InfoBatch"]),
        **{
            (name,): Setting(align(correlation=name, rescale=False))
            for name in ("pearson", "spearman", "cosine", "dtw")
        },
    },
    "reference": {
        BASE: Setting(METHODS["InfoBatch"]),
        ("self",): Setting(align(rescale=False)),
        **{
            (f"{size} samples, {wrong:.0%} wrong",): Setting(align(size=size, wrong=wrong, rescale=False))
            for size, wrong in ((10, 0.0), (50, 0.0), (100, 0.0), (500, 0.0), (100, 0.2), (100, 0.4))
        },
    },
}
"""By name: the settings, each under the first cells of its row; one row is InfoBatch, to which others are compared."""


def run(experiment: str, row: tuple[str, ...], seed: int) -> dict[str, float]:
    """Train once; return the accuracy, the share of wrong labels that was kept, the saved share, and CPU seconds."""
    start = time.process_time()
    setting = EXPERIMENTS[experiment][row]
    L.seed_everything(seed, verbose=False)
    data = NoisyDigits(setting.kind, setting.rate, split_seed=seed)
    data.setup("fit")
    method = setting.make(data.flipped)
    history, registry, accuracy = train(method, setting.model(), data, setting.epochs, flipped="flipped")
    ranked = history[getattr(method, "window", 10) : int(0.875 * setting.epochs)]  # InfoBatch anneals after that
    return {
        "accuracy": accuracy,
        "noise": statistics.fmean(values["noise_ratio"] for values in ranked),
        "saved": registry.saved_fraction,
        "seconds": time.process_time() - start,
    }


def table(experiment: str, results: dict[tuple[tuple[str, ...], int], dict[str, float]]) -> str:
    """Return the table of an experiment, from the results by row and seed."""
    rows, seeds = list(EXPERIMENTS[experiment]), sorted({seed for _, seed in results})
    names = ["noise", "method"] if len(rows[0]) == 2 else [experiment]
    values = ["accuracy, %", "against InfoBatch, points", "wrong labels kept, %", "saved, %"]
    lines = [[*names, *values], ["---"] * len(names) + ["---:"] * len(values)]

    def of(row: tuple[str, ...], key: str) -> list[float]:
        return [100 * results[row, seed][key] for seed in seeds]

    for row in rows:
        accuracy = of(row, "accuracy")
        gains = [a - b for a, b in zip(accuracy, of((*row[:-1], *BASE), "accuracy"), strict=True)]
        lines.append([
            *row,
            spread(accuracy, 1),
            f"{statistics.fmean(gains):+.1f}"
            + (f" ± {statistics.stdev(gains) / len(seeds) ** 0.5:.1f}" if len(seeds) > 1 else ""),
            *(f"{statistics.fmean(of(row, key)):.1f}" for key in ("noise", "saved")),
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    add_seeds(parser, 10)
    parser.add_argument("--jobs", type=count, default=1, help="processes")
    args = parser.parse_args()
    cases = list(product(EXPERIMENTS[args.name], seeds_of(args)))
    rows, seeds = zip(*cases, strict=True)
    with ProcessPoolExecutor(args.jobs, initializer=quiet) as pool:
        results = dict(zip(cases, pool.map(run, repeat(args.name), rows, seeds), strict=True))
    minutes = sum(result["seconds"] for result in results.values()) / 60
    print(f"{len(cases)} runs, {minutes:.1f} minutes of CPU time\n\n{table(args.name, results)}")


if __name__ == "__main__":
    main()
