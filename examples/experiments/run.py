"""Run one of the experiments of docs/experiments.md: ``python -m examples.experiments.run NAME [--jobs 2]``.

Each is a few calls of ``lightning-prune compare`` into one folder, results/NAME. Runs that have finished are kept.
"""

from __future__ import annotations

import argparse
import sys

from lightning_prune.cli import main as lightning_prune

HERE = "examples/experiments"
RATIOS = ["--prune_ratios", "0.3", "0.5", "0.7"]
EXPERIMENTS: dict[str, list[list[str]]] = {
    # (a) full data and six methods at about 30, 50 and 70 % saved
    "methods": [
        ["--methods", "RandomPruning", "OrderDP", "RePB", f"{HERE}/no_anneal.yaml", *RATIOS],
        ["--methods", "InfoBatch", "--prune_ratios", "0.3", "0.5"],
        ["--methods", "SeTa", f"{HERE}/seta.yaml", "--prune_ratios", "0.5", "0.7"],
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--jobs", default="2")
    args = parser.parse_args()
    sys.argv[1:] = []  # they are not the arguments of what is run
    for command in EXPERIMENTS[args.name]:
        shared = ["--output", f"results/{args.name}", "--seeds", args.seeds, "--jobs", args.jobs]
        config = [] if "--config" in command else ["--config", f"{HERE}/digits.yaml"]
        lightning_prune(["compare", *config, *command, *shared])


if __name__ == "__main__":
    main()
