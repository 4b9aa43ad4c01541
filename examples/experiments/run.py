"""Run one of the experiments of docs/experiments.md: ``python -m examples.experiments.run NAME [--jobs 2]``.

Each is a few calls of ``lightning-prune compare``, into folders of results/NAME. Runs that have finished are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.experiments.reporting import add_seeds, count
from lightning_prune.cli import main as lightning_prune

HERE = "examples/experiments"
GLYPHS = ["--config", "examples/glyphs/compare.yaml"]
BOUND = f"{HERE}/infobatch_bound.yaml"
RATIOS = ["--prune_ratios", "0.3", "0.5", "0.7"]
OPTIMIZERS = {
    "sgd": ["--optimizer=torch.optim.SGD", "--optimizer.lr=0.01", "--optimizer.momentum=0.9"],
    "adamw": ["--optimizer=torch.optim.AdamW", "--optimizer.lr=0.002"],
    "lars": [
        "--optimizer=timm.optim.Lars",
        "--optimizer.lr=2.0",
        "--optimizer.momentum=0.9",
        "--optimizer.always_adapt=true",
    ],
    "lamb": ["--optimizer=timm.optim.Lamb", "--optimizer.lr=0.003"],
}

Command = tuple[str, list[str]]
"""Folder in results/NAME, and arguments of ``lightning-prune compare``."""
EXPERIMENTS: dict[str, list[Command]] = {
    # (a) full data and six methods at about 30, 50 and 70 % saved
    "methods": [
        ("", ["--methods", "RandomPruning", "OrderDP", "RePB", *RATIOS]),
        ("", ["--methods", "InfoBatch", f"{HERE}/no_anneal.yaml", BOUND, "--prune_ratios", "0.3", "0.5"]),
        ("", ["--methods", "SeTa", f"{HERE}/seta.yaml", "--prune_ratios", "0.5", "0.7"]),
    ],
    # the same on images that are harder, and more
    "glyphs": [
        ("", [*GLYPHS, "--methods", "RandomPruning", "OrderDP", "RePB", "SeTa", *RATIOS]),
        ("", [*GLYPHS, "--methods", "InfoBatch", BOUND, "--prune_ratios", "0.3"]),
    ],
    "repb": [("", ["--methods", f"{HERE}/repb.yaml"])],  # (b)
    "orderdp": [("", ["--methods", f"{HERE}/orderdp.yaml"])],  # (c)
    # (f) four optimizers at a constant rate; LARS and LAMB are timm's
    "optimizers": [
        (name, ["--methods", "RandomPruning", "InfoBatch", "RePB", "OrderDP", "--prune_ratios", "0.5", *optimizer])
        for name, optimizer in OPTIMIZERS.items()
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    add_seeds(parser, 5)
    parser.add_argument("--jobs", type=count, default=2)
    args = parser.parse_args()
    sys.argv[1:] = []  # they are not the arguments of what is run
    for name, command in EXPERIMENTS[args.name]:
        folder = Path("results") / args.name / name
        config = [] if "--config" in command else ["--config", f"{HERE}/digits.yaml"]
        seeds = ["--seeds", str(args.seeds), "--first_seed", str(args.first_seed)]
        shared = ["--output", str(folder), *seeds, "--jobs", str(args.jobs), "--no_control", "--pilots"]
        lightning_prune(["compare", *config, *command, *shared])


if __name__ == "__main__":
    main()
