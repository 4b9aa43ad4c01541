"""Wrong labels found by one pruned run, against cleanlab. ``python -m examples.experiments.label_issues digits|cifar``.

`LabelIssues` sees one run with InfoBatch. cleanlab, the tool made for it, gets out-of-sample probabilities of the same
network from 5-fold cross-validation on all the data, and scores labels by self-confidence. Each case is appended to
``--results``, and is not run again if it is there, so that a run can be stopped and go on. Prints a Markdown table of
means over the seeds: average precision (AP) and AUROC of the scores, precision at the true number of wrong labels, and
CPU seconds. "Mean loss" and "last loss" are those of the same pruned run. A second table has the estimated number of
wrong labels over the true one, also by two other rules on the run's mean probabilities: how many predict another label
than the given one, and cleanlab's rule.

``cifar`` needs ``--data_root DIR`` with torchvision's ``cifar-10-batches-py`` and the labels of CIFAR-10N, as in
docs/cifar.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from examples.cifar.task import HUMAN, Cifar10Data, small_network
from examples.experiments.noise import NoisyDigits, NoisyModel
from examples.experiments.training import quiet
from lightning_prune import InfoBatch, LabelIssues, PruningCallback, ScoreRegistry, WeightedLossMixin

KINDS = ("symmetric", "pairflip", "asymmetric_cifar10", "asymmetric_cifar10_one_way")
RATES = (0.05, 0.1, 0.2, 0.4)
KNOWN = (*KINDS, *HUMAN)
FOLDS = 5


@final
class CifarModel(WeightedLossMixin, L.LightningModule):
    """A network of 237,250 weights, trained on uint8 images that are shifted by up to 2 pixels and mirrored."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_network()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(
            ((images.float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        ).float()
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(augment(images))
        return self.weighted_loss(F.cross_entropy(logits, targets, reduction="none"), logits=logits, targets=targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def augment(images: Tensor) -> Tensor:
    """Mirror half of the images ``(B, 3, 32, 32)``, and shift each by up to 2 pixels."""
    num = len(images)
    images = torch.where((torch.rand(num) < 0.5).view(-1, 1, 1, 1), images.flip(3), images)
    down, right = torch.randint(0, 5, (2, num, 1, 1, 1))
    place = torch.arange(32)
    rows, columns = place.view(1, 1, 32, 1) + down, place.view(1, 1, 1, 32) + right
    return F.pad(images, (2, 2, 2, 2))[
        torch.arange(num).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows, columns
    ]


@final
class Task(NamedTuple):
    """What a case trains on, and how."""

    images: Tensor
    given: Tensor
    wrong: Tensor
    model: Callable[[], L.LightningModule]
    epochs: int
    batch_size: int
    precision: Literal["32-true", "bf16-mixed"]


def digits(kind: str, rate: float, seed: int) -> Task:
    """Return digits of which a share has wrong labels."""
    data = NoisyDigits(kind, rate, split_seed=seed)
    data.setup("fit")
    images, given = data.train.tensors
    return Task(images, given, given != data.clean.train.tensors[1], NoisyModel, 40, 32, "32-true")


def cifar(root: Path, labels: Literal["aggregate", "random1", "worst"], num_images: int, epochs: int) -> Task:
    """Return the first images of CIFAR-10 with human labels; in bfloat16, which is twice as fast on recent CPUs."""
    data = Cifar10Data(str(root), labels)
    data.setup("fit")
    images, given, wrong = (values[:num_images] for values in (*data.train.tensors, data.wrong))
    batch_size = 128 if num_images > 20_000 else 64
    return Task(images, given, wrong, CifarModel, epochs, batch_size, "bf16-mixed")


def fit(task: Task, images: Tensor, labels: Tensor, *callbacks: L.Callback) -> L.LightningModule:
    """Train the task's model once."""
    model = task.model().to(memory_format=torch.channels_last)
    trainer = L.Trainer(
        max_epochs=task.epochs,
        precision=task.precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, DataLoader(TensorDataset(images, labels), task.batch_size, shuffle=True))
    return model


def ours(task: Task, seed: int, method: PruningCallback) -> dict[str, dict[str, float]]:
    """Return the figures of one pruned run: by `LabelIssues`, and by its losses."""
    start = time.process_time()
    registry, issues = ScoreRegistry(), LabelIssues()
    L.seed_everything(seed, verbose=False)
    fit(task, task.images, task.given, registry, method, issues)
    table = issues.issues()
    seconds = time.process_time() - start
    by_id = table["index"].argsort()
    figures = {"LabelIssues": figures_of(task.wrong, table["score"][by_id], issues.num_issues, seconds)}
    assert issues.evidence is not None
    figures["LabelIssues"] |= other_numbers(
        task.given, issues.evidence.columns()["outputs"].cpu(), int(task.wrong.sum())
    )
    for name, losses in (("mean loss", table["loss"][by_id]), ("last loss", registry.losses.cpu())):
        figures[name] = figures_of(task.wrong, losses, None, seconds)
    return figures


def other_numbers(given: Tensor, probs: Tensor, number: int) -> dict[str, float]:
    """Return the number of wrong labels by other rules, on mean probabilities ``(n, C)``, over the true one."""
    from cleanlab.count import num_label_issues

    probs = probs.double() / probs.double().sum(1, keepdim=True)
    confident = int(num_label_issues(given.numpy(), probs.numpy()))
    return {"differs": int((probs.argmax(1) != given).sum()) / number, "confident": confident / number}


def cleanlab(task: Task, seed: int) -> dict[str, float]:
    """Return the figures of cleanlab, on out-of-sample probabilities."""
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores

    start = time.process_time()
    probs = np.zeros((len(task.given), 10), dtype=np.float64)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(task.images, task.given)
    for rest, held_out in folds:
        L.seed_everything(seed, verbose=False)
        model = fit(task, task.images[rest], task.given[rest]).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled="bf16" in task.precision):
            parts = DataLoader(TensorDataset(task.images[held_out]), 512)
            outputs = torch.cat([model(part) for (part,) in parts])
        probs[held_out] = outputs.double().softmax(1).numpy()
    labels = task.given.numpy()
    quality = get_label_quality_scores(labels, probs, method="self_confidence")
    number = int(num_label_issues(labels, probs))
    return figures_of(task.wrong, torch.from_numpy(1 - quality), number, time.process_time() - start)


def figures_of(wrong: Tensor, scores: Tensor, number: int | None, seconds: float) -> dict[str, float]:
    """Return what is told of scores ``(n,)``, high where a label is likely wrong."""
    total = int(wrong.sum())
    first = scores.argsort(descending=True, stable=True)[:total]
    figures = {
        "ap": float(average_precision_score(wrong, scores)),
        "auroc": float(roc_auc_score(wrong, scores)),
        "precision": float(wrong[first].double().mean()),
        "seconds": seconds,
    }
    return figures if number is None else {**figures, "number": number / total}


def run(case: dict[str, Any], root: Path | None, peer: bool) -> dict[str, dict[str, float]]:
    """Return the figures of one case, by finder."""
    if case["data"] == "digits":
        task = digits(case["labels"], case["rate"], case["seed"])
    else:
        assert root is not None
        task = cifar(root, case["labels"], case["images"], case["epochs"])
    found = ours(task, case["seed"], InfoBatch())
    return {**found, "cleanlab": cleanlab(task, case["seed"])} if peer else found


COLUMNS = {"AP": "ap", "AUROC": "auroc", "precision": "precision", "CPU s": "seconds"}
"""Figures by their names in the table: of `LabelIssues` and cleanlab; AP and AUROC of the losses, too."""
NUMBERS = {
    "LabelIssues, ratio": ("LabelIssues", "number"),
    "prediction differs, ratio": ("LabelIssues", "differs"),
    "cleanlab's rule, ratio": ("LabelIssues", "confident"),
    "cleanlab, 5-fold, ratio": ("cleanlab", "number"),
}
"""Estimates of the number by their names in the table: whose figures, and which."""


def table(results: list[dict[str, Any]]) -> str:
    """Return the table of all results: a row for each kind of labels, means over its seeds."""
    wanted = [(name, finder) for name in COLUMNS for finder in ("LabelIssues", "cleanlab")]
    losses = [(name, finder) for name in ("AP", "AUROC") for finder in ("mean loss", "last loss")]
    wanted = [*wanted[:1], *losses[:2], *wanted[1:3], *losses[2:], *wanted[3:]]
    heads = {
        name if finder == "LabelIssues" else f"{name}, {finder}": (finder, COLUMNS[name]) for name, finder in wanted
    }
    return _rows(results, heads)


def number_table(results: list[dict[str, Any]]) -> str:
    """Return the table of the estimated numbers of wrong labels, over the true ones."""
    return _rows(results, NUMBERS)


def _rows(results: list[dict[str, Any]], heads: dict[str, tuple[str, str]]) -> str:
    """Return a table; a column that no result has a value for is left out."""
    rows: dict[str, list[dict[str, dict[str, float]]]] = {}
    for result in results:
        case = result["case"]
        share = f" {case['rate']:.0%}" if "rate" in case else f", {case['images']:,} images"
        rows.setdefault(case["labels"] + share, []).append(result["figures"])
    lines: dict[str, list[str]] = {}
    for labels, seeds in rows.items():
        for finder, name in heads.values():
            values = [figures[finder][name] for figures in seeds if name in figures.get(finder, {})]
            form = {"seconds": ".1f"}.get(name, ".3f" if heads is not NUMBERS else ".2f")
            lines.setdefault(labels, []).append(f"{statistics.fmean(values):{form}}" if values else "")
    shown = [i for i in range(len(heads)) if any(cells[i] for cells in lines.values())]
    head = ["labels", "seeds", *(name for i, name in enumerate(heads) if i in shown)]
    body = [[labels, f"{len(rows[labels])}", *(cells[i] for i in shown)] for labels, cells in lines.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---", *["---:"] * (len(head) - 1)], *body])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ``arguments`` are those of the command line by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "cifar"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="kinds of noise, or sets of human labels")
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--images", type=int, default=50_000, help="of CIFAR-10, from the first")
    parser.add_argument("--epochs", type=int, default=8, help="on CIFAR-10")
    parser.add_argument("--without_cleanlab", action="store_true")
    parser.add_argument("--table", action="store_true", help="only print the table of what --results has of these")
    parser.add_argument("--results", type=Path, default=Path("results/label_issues.jsonl"))
    args = parser.parse_args(arguments)
    if args.data == "cifar" and args.data_root is None:
        parser.error("Expected --data_root, the folder of CIFAR-10 and its human labels, but got none.")
    known = KINDS if args.data == "digits" else HUMAN
    if unknown := set(args.kinds or ()) - set(known):
        parser.error(f"Expected --kinds of {', '.join(known)}, but got {', '.join(sorted(unknown))}.")
    quiet()
    if args.data == "digits":
        settings = product(args.kinds or KINDS, RATES)
        cases = [{"data": "digits", "labels": kind, "rate": rate} for kind, rate in settings]
    else:
        cases = [
            {"data": "cifar", "labels": kind, "images": args.images, "epochs": args.epochs}
            for kind in args.kinds or HUMAN
        ]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    done = {json.dumps(json.loads(line)["case"]): json.loads(line) for line in lines}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    wanted = [{**case, "seed": seed} for seed in seeds for case in cases]
    for case in wanted:
        if json.dumps(case) not in done and not args.table:
            try:
                figures = run(case, args.data_root, not args.without_cleanlab)
            except FileNotFoundError as error:
                parser.error(str(error))
            done[json.dumps(case)] = {"case": case, "figures": figures}
            with args.results.open("a") as file:
                file.write(json.dumps(done[json.dumps(case)]) + "\n")
    found = [done[json.dumps(case)] for case in wanted if json.dumps(case) in done]
    ordered = sorted(found, key=lambda result: KNOWN.index(result["case"]["labels"]))
    print(table(ordered), number_table(ordered), sep="\n")


if __name__ == "__main__":
    main()
