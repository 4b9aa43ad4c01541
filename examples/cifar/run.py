"""CIFAR-10, all 50,000 images: ``python -m examples.cifar.run NAME --data_root DIR``; see docs/cifar.md.

Each experiment is ``lightning-prune compare`` on examples/cifar/compare.yaml, into results/cifar/NAME: runs that have
finished are kept, and each row ends in a verdict. ``label-issues`` is ``examples.experiments.label_issues cifar``.
DIR holds torchvision's ``cifar-10-batches-py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from examples.cifar.task import HUMAN, read_human, read_part
from examples.experiments.reporting import add_seeds, count
from lightning_prune.cli import PruneCLI
from lightning_prune.cli import main as lightning_prune
from lightning_prune.scoring import AUM, DUAL, EL2N, TDDS, DynUnc, Forgetting, ScoreRecorder, score_module

HERE = "examples/cifar"
METHODS = ["RandomPruning", "RS2", "InfoBatch", "SeTa", "RePB", "OrderDP", "ImportanceSampling"]
COMPARED = ("methods", "time", "human-noise", "static")
NAMES = (*COMPARED, "label-issues")
LEVEL = 0.8
TAKEN_BY = {
    "methods": ("methods", "time"),
    "prune_ratios": ("methods", "time", "static"),
    "level": ("time",),
    **dict.fromkeys(("arch", "devices", "jobs"), COMPARED),
}
"""Options that not every experiment takes."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data_root", required=True, help="folder that holds cifar-10-batches-py")
    add_seeds(parser, 3)
    parser.add_argument("--epochs", type=count, help="default: 16, 200 with resnet18, and 8 of `label-issues`")
    parser.add_argument("--jobs", type=count, default=2, help="runs at a time; `time` makes one (default: 2)")
    parser.add_argument("--arch", choices=["small", "resnet18"], default="small")
    parser.add_argument("--devices", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--methods", nargs="+", help="of `methods` and `time`: these instead")
    parser.add_argument("--prune_ratios", nargs="+", help="these instead")
    parser.add_argument("--level", type=float, default=LEVEL, help=f"of `time`: accuracy to reach (default: {LEVEL})")
    parser.add_argument("--output", default="results/cifar", help="default: results/cifar")
    return parser


def shared(args: argparse.Namespace) -> list[str]:
    """Return the arguments of ``lightning-prune fit`` that say what is trained."""
    epochs = args.epochs or (16 if args.arch == "small" else 200)
    return [
        f"--config={HERE}/compare.yaml",
        f"--data.root={Path(args.data_root).resolve()}",
        f"--model.arch={args.arch}",
        f"--model.lr={0.1 if args.arch == 'small' else 0.2}",
        f"--trainer.max_epochs={epochs}",
        *(["--trainer.accelerator=gpu"] if args.devices == "cuda" else []),
    ]


def command(args: argparse.Namespace, folder: Path, methods: Sequence[str], ratios: Sequence[str]) -> list[str]:
    """Return a whole command."""
    seeds = ["--seeds", str(args.seeds), "--first_seed", str(args.first_seed)]
    own = ["compare", *shared(args), "--output", str(folder), *seeds, "--methods", *methods]
    own += ["--jobs", "1" if args.name == "time" else str(args.jobs)]
    return [*own, *(["--prune_ratios", *ratios] if ratios else [])]


def commands(args: argparse.Namespace) -> list[list[str]]:
    """Return the commands of an experiment."""
    folder = Path(args.output) / args.name
    if args.name == "methods":
        return [command(args, folder, args.methods or METHODS, args.prune_ratios or ["0.3", "0.5"])]
    if args.name == "time":
        return [command(args, folder, args.methods or ["RePB", "OrderDP"], args.prune_ratios or ["0.3"])]
    if args.name == "human-noise":
        monitor = {"class_path": "lightning_prune.PruningMonitor", "init_args": {"flipped": "flipped"}}
        more = ["--trainer.callbacks+=" + json.dumps(monitor)]
        return [
            [*command(args, folder / name, [f"{HERE}/human_noise.yaml"], []), f"--data.labels={name}", *more]
            for name in HUMAN
        ]
    return [command(args, folder, [str(score(args, folder))], args.prune_ratios or ["0.5", "0.7", "0.9"])]


def score(args: argparse.Namespace, folder: Path, *arguments: str) -> Path:
    """Score once, unless it has been done; return the file of methods that prune by the scores.

    Args:
        args: What is trained.
        folder: That of the experiment; the scores lie beside it.
        *arguments: Further ones of ``lightning-prune fit``.
    """
    scores = folder.with_name("scores")
    path = scores / "methods.yaml"
    if not path.exists():
        window = max(3, min(10, (args.epochs or 16) // 2))
        trackers = [TDDS(window=window), EL2N(), AUM(), Forgetting(), DynUnc(window=window), DUAL(window=window)]
        recorder = ScoreRecorder(trackers, save_to=str(scores))
        own = ["fit", *shared(args), f"--seed_everything={args.first_seed}", *arguments]
        cli = PruneCLI(args=own, save_config_callback=None, trainer_defaults={"callbacks": [recorder]})
        trained = score_module("Moderate", cli.model, cli.datamodule.train_dataloader(), progress=False)
        trained.save(scores / "moderate.npz")
        path.write_text(yaml.safe_dump(static_methods(scores.resolve()), sort_keys=False))
    return path


def static_methods(scores: Path) -> dict[str, dict[str, Any]]:
    """Return the static methods, as a file of methods holds them."""

    def method(path: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": "StaticPruning", "init_args": {"scores": path, **arguments}}

    def file(name: str) -> str:
        return str(scores / f"{name.lower()}.npz")

    found = {name: method(file(name)) for name in ("TDDS", "EL2N", "AUM", "Forgetting", "DynUnc", "DUAL", "Moderate")}
    found["DUAL, beta sampling"] = method(file("DUAL"), selector="beta")
    found["CCS on AUM"] = method(file("AUM"), selector="ccs", selector_args={"hard_cutoff": 0.1})
    return {"random": method("random"), **found}


def check(args: argparse.Namespace) -> None:
    """Look for the data before anything else.

    Raises:
        FileNotFoundError: If they are not there; the message says how to get them.
    """
    read_part(Path(args.data_root) / "cifar-10-batches-py", ["test_batch"])
    for name in HUMAN if args.name in ("human-noise", "label-issues") else ():
        read_human(Path(args.data_root), name)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/result.json"))]


def time_to_level(folder: Path, level: float) -> str:
    """Return a table of the time until the accuracy is first at a level, means of the runs that reach it.

    The ratios are of CPU seconds, which other work on the machine hardly changes.
    """
    found: dict[tuple[str, float], list[dict[str, float] | None]] = {}
    for run in results(folder):
        if not run["label"].startswith("pilot"):
            reached = next((point for point in run["curve"] if point["val_accuracy"] >= level), None)
            found.setdefault((run["label"], run["ratio"] or 0.0), []).append(reached)

    def mean(key: tuple[str, float], unit: str) -> float | None:
        times = [point[unit] for point in found.get(key, []) if point is not None]
        return statistics.fmean(times) if times else None

    full = mean(("full data", 0.0), "cpu_seconds")
    lines = [f"| method | runs that reach {level:g} | wall s | CPU s | full data's CPU s / its |"]
    lines.append("|---|---:|---:|---:|---:|")
    for label, ratio in sorted(found, key=lambda key: (key[0] != "full data", key)):
        wall, cpu = (mean((label, ratio), unit) for unit in ("seconds", "cpu_seconds"))
        shown = ["-" if seconds is None else f"{seconds:.0f}" for seconds in (wall, cpu)]
        gain = "-" if cpu is None or full is None else f"{full / cpu:.2f}"
        points = found[label, ratio]
        name = f"{label}, {ratio:g}" if ratio else label
        lines.append(
            f"| {name} | {sum(point is not None for point in points)} of {len(points)} | {' | '.join([*shown, gain])} |"
        )
    return "\n".join(lines)


def wrong_labels_kept(folder: Path) -> str:
    """Return a table of the share of wrong labels among what was trained, mean of the epochs after the first window."""
    found: dict[str, list[float]] = {}
    for run in results(folder):
        shares = [point["prune/noise_ratio"] for point in run["curve"] if "prune/noise_ratio" in point]
        ranked = shares[5 : int(0.875 * len(shares))]
        if ranked:
            found.setdefault(run["label"], []).append(100 * statistics.fmean(ranked))
    lines = [f"| {folder.name}: method | wrong labels kept, % |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {label} | {statistics.fmean(values):.1f} |" for label, values in found.items())])


def find_label_issues(args: argparse.Namespace) -> None:
    """Find wrong human labels by one pruned run, and by cleanlab."""
    from examples.experiments import label_issues  # and scikit-learn

    own = ["cifar", "--data_root", args.data_root, "--results", str(Path(args.output, args.name, "results.jsonl"))]
    own += ["--seeds", str(args.seeds), "--first_seed", str(args.first_seed)]
    label_issues.main([*own, *(["--epochs", str(args.epochs)] if args.epochs else [])])


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    for option, names in TAKEN_BY.items():
        if args.name not in names and getattr(args, option) != parser.get_default(option):
            parser.error(f"Expected `--{option}` with {', '.join(names)} only, but got it with {args.name}.")
    try:
        check(args)
    except FileNotFoundError as error:
        parser.error(str(error))
    sys.argv[1:] = []  # they are not the arguments of what is run
    if args.name == "label-issues":
        find_label_issues(args)
        return
    for own in commands(args):
        lightning_prune(own)
    folder = Path(args.output) / args.name
    if args.name == "time":
        print(time_to_level(folder, args.level))
    if args.name == "human-noise":
        print("\n\n".join(wrong_labels_kept(folder / name) for name in HUMAN))


if __name__ == "__main__":
    main()
