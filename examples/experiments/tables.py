"""Are the tables in the docs still what the code gives? ``python -m examples.experiments.tables [--check] [WORD]``.

Makes one cheap cell of each table again, with one of its seeds. With ``--check`` it fails where a value is further from
the documented mean than twice the documented deviation, and one unit of the last digit. With ``--data_root DIR`` it
makes those of CIFAR-10 again, too (ten minutes); without it, the same programs train on drawn images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, final

import lightning.pytorch as L
import torch
import yaml
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.cifar import fingerprint
from examples.cifar.task import Cifar10Model
from examples.digits import static
from examples.digits.task import DigitsData, DigitsModel
from examples.experiments import advised, analysis, drift, hard_and_noisy, label_issues, noise, phases
from examples.experiments import run as experiments
from examples.experiments.training import quiet
from examples.glyphs.task import GlyphModel
from lightning_prune import InfoBatch, OrderDP
from lightning_prune.cli import PruneCLI
from lightning_prune.scoring import StaticPruning

ROOT = Path(__file__).parents[2]
SEED = 0
EXPERIMENTS, ANALYSIS, STATIC = "docs/experiments.md", "docs/analysis.md", "docs/static-results.md"
LABELS, CIFAR = "docs/label-issues.md", "docs/cifar.md"
DIGITS, GLYPHS = "examples/experiments/digits.yaml", "examples/glyphs/compare.yaml"


@final
class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        page: The page's path.
        heading: Start of the heading that the table is under.
        row: First cells of its row.
        column: Name of its column.
        run: Makes the value again, in units of the table.
    """

    page: str
    heading: str
    row: tuple[str, ...]
    column: str
    run: Callable[[], float]

    def documented(self) -> tuple[float, float, float]:
        """Return the documented mean, its deviation (0 if none is given) and one unit of its last digit.

        Raises:
            LookupError: If there is no such cell.
        """
        for table in tables_under((ROOT / self.page).read_text(), self.heading):
            header, rows = table[0], table[2:]
            row = next((row for row in rows if tuple(row[: len(self.row)]) == self.row), None)
            if row is not None and self.column in header:
                mean, _, deviation = row[header.index(self.column)].strip("*").partition("±")
                mean = mean.strip().removesuffix("%").strip()
                digits = len(mean.partition(".")[2])
                return float(mean.replace(",", "")), float(deviation or 0), 10.0**-digits
        raise LookupError(
            f"Expected the row {self.row} and the column {self.column!r} under {self.heading!r}, in {self.page}."
        )

    def holds(self, value: float) -> bool:
        """Return whether a value of one seed may be one of those that the documented ones are of."""
        mean, deviation, unit = self.documented()
        return abs(value - mean) <= 2 * deviation + unit


def tables_under(text: str, heading: str) -> list[list[list[str]]]:
    """Return the tables between a heading and the next one, as rows of cells."""
    part = re.search(rf"(?ms)^#+ {re.escape(heading)}.*?$(.*?)(?=^#|\Z)", text)
    blocks = re.findall(r"(?m)(?:^\|.*\|\n?)+", part[1]) if part else []
    return [[[cell.strip() for cell in line.strip().strip("|").split("|")] for line in b.splitlines()] for b in blocks]


def from_yaml(config: str, method: dict[str, Any] | None, *arguments: str) -> Callable[[], float]:
    """Return what trains as `lightning-prune compare` does, and returns the accuracy."""

    def run() -> float:
        args = [
            "fit",
            "--config",
            str(ROOT / config),
            f"--seed_everything={SEED}",
            "--trainer.enable_progress_bar=false",
        ]
        args += [] if method is None else [f"--trainer.callbacks+={json.dumps(method)}"]
        with contextlib.redirect_stderr(io.StringIO()):
            cli = PruneCLI(args=[*args, *arguments], save_config_callback=None)
        return float(cli.trainer.callback_metrics["val_accuracy"])

    return run


def random_pruning(ratio: float) -> dict[str, Any]:
    return {"class_path": "RandomPruning", "init_args": {"prune_ratio": ratio}}


def of_file(name: str, label: str) -> dict[str, Any]:
    entry: dict[str, Any] = yaml.safe_load((ROOT / experiments.HERE / name).read_text())[label]
    return entry


def noisy(name: str, *row: str) -> Callable[[], float]:
    return lambda: 100 * noise.run(name, row, SEED)["accuracy"]


@cache
def monitored() -> list[dict[str, float]]:
    """Return what a monitor saw of a training with InfoBatch, epoch by epoch."""
    method = analysis.AT_40["InfoBatch"]()
    return analysis.train_digits(method, SEED, analysis.EPOCHS, gradient_every_n_epochs=2)[0]


def last_fifth(key: str) -> Callable[[], float]:
    """Return what gives the mean of a monitored value in the last fifth of the training."""
    return lambda: float(analysis.by_part([monitored()], key)[-1])


def of_table(make: Callable[[], str], row: str) -> Callable[[], float]:
    """Return the second cell of a row of a table that takes no training."""

    def run() -> float:
        lines = [line.split("|") for line in make().splitlines() if line]
        return float(next(line[2] for line in lines if line[1].strip() == row).strip().removesuffix(" %"))

    return run


def drift_of_losses() -> float:
    """Return by how much losses differ four steps later, early in training."""
    return drift.train(SEED, {"early": 0}, bounds=False)["early"].measured(4)["mean drift"]


def last_accuracy_of_a_phase() -> float:
    """Return the accuracy after the last epoch, with OrderDP at 61 % pruned."""
    return float(phases.run("OrderDP", 0.61, SEED, gradients=False)["accuracy"][-1])


def never_used() -> float:
    registry = analysis.train_digits(OrderDP(0.837, 0.837), SEED, 40)[1]
    return float((registry.counts == 0).sum())


def mislabelled_loss() -> float:
    watch, flipped = hard_and_noisy.run(None, SEED)
    return float(watch.losses[-1][flipped].mean())


def mislabelled_kept() -> float:
    watch, flipped = hard_and_noisy.run(InfoBatch(0.5), SEED)
    return float(
        torch.stack([flipped[watch.selected[epoch]].double().mean() for epoch in hard_and_noisy.PRUNING]).mean()
    )


def digits(kind: str) -> tuple[TensorDataset, Tensor, TensorDataset]:
    """Return training digits, as they are or damaged, which of them are, and test digits."""
    data = DigitsData(split_seed=SEED)
    data.setup("fit")
    return *static.damaged(data.train, kind, SEED), data.held_out


def random_coreset(kind: str) -> float:
    """Return the accuracy of what trains on a random 70 % of the digits."""
    train, _, held_out = digits(kind)
    draw = torch.rand(len(train), generator=torch.Generator().manual_seed(SEED))
    return static.accuracy(static.fit(train, SEED + 100, 15, StaticPruning(draw, 0.3, seed=SEED)), held_out)


def wrong_kept_by_el2n() -> float:
    train, wrong, _ = digits("noisy")
    run = static.score(train, SEED, 15, ["EL2N"])["EL2N"](0.5)
    return float(wrong[run.choose(len(train)).indices].double().mean())


@cache
def wrong_labels(seed: int) -> dict[str, float]:
    """Return the figures of `LabelIssues` on digits of which a fifth has wrong labels."""
    return label_issues.ours(label_issues.digits("symmetric", 0.2, seed), seed, InfoBatch())["LabelIssues"]


def of_wrong_labels(figure: str) -> float:
    """Return a figure's mean over the seeds of its table, which says nothing of a single one."""
    return statistics.fmean(wrong_labels(seed)[figure] for seed in range(5))


def on_cifar(root: Path) -> dict[str, Cell]:
    """Return the cells that need CIFAR-10 and its human labels, which are in a folder."""

    def accuracy(*arguments: str, method: dict[str, Any] | None = None) -> Callable[[], float]:
        run = from_yaml("examples/cifar/compare.yaml", method, f"--data.root={root.resolve()}", *arguments)
        return lambda: 100 * run()

    def precision() -> float:
        task = label_issues.cifar(root, "worst", 8000, 8)
        return label_issues.ours(task, 0, InfoBatch())["LabelIssues"]["ap"]

    draw = {"class_path": "StaticPruning", "init_args": {"scores": "random", "prune_ratio": 0.9}}
    return {
        "cifar, methods": Cell(
            CIFAR, "Methods", ("full data, 8 of 16 epochs",), "accuracy, %", accuracy("--trainer.max_epochs=8")
        ),
        "cifar, human-noise": Cell(
            CIFAR, "Human labels", ("full data",), "worst: accuracy, %", accuracy("--data.labels=worst")
        ),
        "cifar, static": Cell(CIFAR, "Static", ("random",), "90 % pruned: accuracy, %", accuracy(method=draw)),
        "cifar, labels": Cell(LABELS, "Human labels", ("worst, 8,000 images",), "AP", precision),
    }


CELLS = {
    "label_issues": Cell(LABELS, "Measured", ("symmetric 20%",), "AP", partial(of_wrong_labels, "ap")),
    "number of wrong labels": Cell(
        LABELS, "The number of wrong", ("symmetric 20%",), "LabelIssues, ratio", partial(of_wrong_labels, "number")
    ),
    "methods": Cell(
        EXPERIMENTS, "(a)", ("RandomPruning", "50 %"), "val_accuracy", from_yaml(DIGITS, random_pruning(0.5)),
    ),
    "glyphs": Cell(
        EXPERIMENTS, "The same on glyphs", ("RandomPruning", "70 %"), "val_accuracy",
        from_yaml(GLYPHS, random_pruning(0.7)),
    ),
    "fewer_epochs": Cell(
        EXPERIMENTS, "Fewer epochs instead", ("digits, 6 of 20",), "val_accuracy",
        from_yaml(DIGITS, None, "--trainer.max_epochs=6"),
    ),
    "advised": Cell(
        EXPERIMENTS, "Where a choice", ("little learnt", "RandomPruning"), "val_accuracy",
        from_yaml(DIGITS, None, *advised.arguments("little learnt", "RandomPruning")),
    ),
    "repb": Cell(EXPERIMENTS, "(b)", ("RePB",), "val_accuracy", from_yaml(DIGITS, of_file("repb.yaml", "RePB"))),
    "orderdp": Cell(
        EXPERIMENTS, "(c)", ("OrderDP, s 0.707, q 0.707",), "val_accuracy",
        from_yaml(DIGITS, of_file("orderdp.yaml", "OrderDP, s 0.707, q 0.707")),
    ),
    "phases": Cell(
        EXPERIMENTS, "(g)", ("OrderDP",), "last epoch, 95-100 %", last_accuracy_of_a_phase,
    ),
    "optimizers": Cell(
        EXPERIMENTS, "(f)", ("AdamW, 0.002", "RandomPruning"), "val_accuracy",
        from_yaml(DIGITS, random_pruning(0.5), *experiments.OPTIMIZERS["adamw"]),
    ),
    "kinds": Cell(
        EXPERIMENTS, "Kinds of noise", ("symmetric 40%", "AlignPrune, rescale=False"), "accuracy, %",
        noisy("kinds", "symmetric 40%", "AlignPrune, rescale=False"),
    ),
    "bases": Cell(EXPERIMENTS, "Every base", ("SeTa",), "accuracy, %", noisy("bases", "SeTa")),
    "calibrated": Cell(
        EXPERIMENTS, "InfoBatch with a reference", ("calibrated InfoBatch",), "accuracy, %",
        noisy("calibrated", "calibrated InfoBatch"),
    ),
    "next": Cell(
        EXPERIMENTS, "The paper's own symmetric", ("next class 20%", "InfoBatch"), "accuracy, %",
        noisy("next", "next class 20%", "InfoBatch"),
    ),
    "long": Cell(EXPERIMENTS, "What an epoch prunes", ("InfoBatch",), "accuracy, %", noisy("long", "InfoBatch")),
    "cnn": Cell(EXPERIMENTS, "A network that memorises", ("InfoBatch",), "accuracy, %", noisy("cnn", "InfoBatch")),
    "windows": Cell(EXPERIMENTS, "Windows", ("window 20",), "accuracy, %", noisy("windows", "window 20")),
    "correlations": Cell(EXPERIMENTS, "Correlations", ("cosine",), "accuracy, %", noisy("correlations", "cosine")),
    "reference": Cell(
        EXPERIMENTS, "The reference's size", ("100 samples, 0% wrong",), "accuracy, %",
        noisy("reference", "100 samples, 0% wrong"),
    ),
    "surrogate": Cell(
        ANALYSIS, "OrderDP's surrogate loss", ("1,000",), "largest gap to the limit density",
        of_table(analysis.surrogate, "1,000"),
    ),
    "unbiased": Cell(
        ANALYSIS, "Which rules are unbiased", ("RandomPruning(0.4)",), "bias of the loss sum",
        of_table(analysis.unbiasedness, "RandomPruning(0.4)"),
    ),
    "drift": Cell(ANALYSIS, "Score context", ("epochs 1 and 2, 4 steps",), "mean drift, nats", drift_of_losses),
    "overlap": Cell(ANALYSIS, "Jaccard", ("40 %, InfoBatch",), "80-100 %", last_fifth("jaccard")),
    "cosine": Cell(ANALYSIS, "Cosine", ("40 %, InfoBatch",), "80-100 %", last_fifth("grad_cosine")),
    "norm": Cell(ANALYSIS, "Norm", ("40 %, InfoBatch",), "80-100 %", last_fifth("grad_norm_ratio")),
    "usage": Cell(ANALYSIS, "Use of the samples", ("30 %",), "samples never used", never_used),
    "losses of groups": Cell(ANALYSIS, "Hard against", ("loss: mislabelled",), "40", mislabelled_loss),
    "groups kept": Cell(
        ANALYSIS, "Hard against", ("InfoBatch, 0.5",), "share mislabelled among the kept", mislabelled_kept
    ),
    "static": Cell(STATIC, "Clean labels", ("random",), "30% pruned", partial(random_coreset, "right")),
    "static, trained with noise": Cell(
        STATIC, "Accuracy with wrong labels", ("random",), "30% pruned", partial(random_coreset, "noisy")
    ),
    "static, corrupted": Cell(
        STATIC, "Corrupted images", ("random",), "30% pruned", partial(random_coreset, "corrupted")
    ),
    "static, noisy": Cell(STATIC, "20 % wrong labels", ("EL2N",), "50% pruned", wrong_kept_by_el2n),
    **{
        f"cifar, drawn, {experiment}, {method}": Cell(
            CIFAR, "Is it still", (f"`{experiment}`", method), "loss, nats", compute
        )
        for (experiment, method), compute in fingerprint.ROWS.items()
    },
}  # fmt: skip
MODELS: dict[tuple[str, str], Callable[[], L.LightningModule]] = {
    (EXPERIMENTS, "a CNN with {:,} weights"): lambda: DigitsModel(width=16),
    (EXPERIMENTS, "a CNN of three convolutions with {:,} weights"): GlyphModel,
    (EXPERIMENTS, "one hidden layer and {:,} weights"): noise.NoisyModel,
    (STATIC, "a small CNN (8 and 16 channels, {:,} weights)"): lambda: DigitsModel(width=8),
    (CIFAR, "two CPU cores: {:,} weights"): Cifar10Model,
    (CIFAR, "the papers' network, {:,} weights"): lambda: Cifar10Model("resnet18"),
    (LABELS, "8 epochs of a network of {:,} weights"): label_issues.CifarModel,
}
"""What a page says of the model of its experiments, and that model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only cells whose names begin with one of these")
    parser.add_argument("--check", action="store_true", help="exit with code 1 if a cell differs")
    parser.add_argument("--data_root", type=Path, help="folder of CIFAR-10 and its human labels")
    args = parser.parse_args()
    cells = CELLS if args.data_root is None else CELLS | on_cifar(args.data_root)
    if unknown := [word for word in args.words if not any(name.startswith(word) for name in cells)]:
        parser.error(f"Expected words of {'; '.join(cells)}, but got {', '.join(unknown)}.")
    quiet()
    different = 0
    for name in [name for name in cells if not args.words or name.startswith(tuple(args.words))]:
        cell = cells[name]
        value, (mean, deviation, _) = cell.run(), cell.documented()
        holds = cell.holds(value)
        different += not holds
        where = f"{cell.page}, {cell.heading}: {', '.join(cell.row)}"
        print(f"{'ok' if holds else 'DIFFERS'}: {name} ({where}): {mean:g} ± {deviation:g} there, {value:.4g} now")
    if args.data_root is None:
        print(f"Not made again without --data_root: {'; '.join(on_cifar(Path()))}")
    if args.check and different:
        sys.exit(f"{different} documented tables differ: make them again by their commands.")


if __name__ == "__main__":
    main()
