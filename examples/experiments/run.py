"""Run one of the experiments of docs/experiments.md: ``python -m examples.experiments.run NAME [--jobs 2]``.

Each is a few calls of ``lightning-prune compare``, into folders of results/NAME. Runs that have finished are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from lightning_prune.cli import main as lightning_prune

HERE = "examples/experiments"
RATIOS = ["--prune_ratios", "0.3", "0.5", "0.7"]
OPTIMIZERS = {
    "sgd": ["--optimizer=torch.optim.SGD", "--optimizer.lr=0.01", "--optimizer.momentum=0.9"],
    "adamw": ["--optimizer=torch.optim.AdamW", "--optimizer.lr=0.002"],
    "lars": [
        "--optimizer=timm.optim.Lars",
        "--optimizer.lr=0.5",
        "--optimizer.momentum=0.9",
        "--optimizer.always_adapt=true",
    ],
    "lamb": ["--optimizer=timm.optim.Lamb", "--optimizer.lr=0.01"],
}
NOISES = [(kind, rate) for kind in ("symmetric", "asymmetric_cifar10", "pairflip") for rate in (0.2, 0.4, 0.5)]

Command = tuple[str, list[str]]
"""Folder in results/NAME, and arguments of ``lightning-prune compare``."""
EXPERIMENTS: dict[str, list[Command]] = {
    # (a) full data and six methods at about 30, 50 and 70 % saved
    "methods": [
        ("", ["--methods", "RandomPruning", "OrderDP", "RePB", f"{HERE}/no_anneal.yaml", *RATIOS]),
        ("", ["--methods", "InfoBatch", "--prune_ratios", "0.3", "0.5"]),
        ("", ["--methods", "SeTa", f"{HERE}/seta.yaml", "--prune_ratios", "0.5", "0.7"]),
    ],
    "glyphs": [
        ("", ["--config", "examples/glyphs/compare.yaml", "--methods", "RandomPruning", "InfoBatch", "RePB", "OrderDP",
              "--prune_ratios", "0.5"]),
    ],
    "repb": [("", ["--methods", f"{HERE}/repb.yaml"])],  # (b)
    "orderdp": [("", ["--methods", f"{HERE}/orderdp.yaml"])],  # (c)
    # (d) three kinds of noise; then window and correlation at one of them
    "noise": [
        (f"{kind}-{rate}", ["--config", f"{HERE}/noisy_digits.yaml", f"--data.noise={kind}", f"--data.rate={rate}",
                            "--methods", f"{HERE}/noise.yaml"])
        for kind, rate in NOISES
    ],
    "noise-short": [
        ("", ["--config", f"{HERE}/noisy_digits.yaml", "--data.rate=0.4", "--methods", f"{HERE}/noise.yaml"]),
    ],
    "alignment": [
        ("", ["--config", f"{HERE}/noisy_digits.yaml", "--data.rate=0.4", "--methods", f"{HERE}/alignment.yaml"]),
    ],
    # (f) four optimizers at a constant rate; LARS and LAMB are timm's
    "optimizers": [
        (name, ["--methods", "InfoBatch", "OrderDP", "--prune_ratios", "0.5", *optimizer])
        for name, optimizer in OPTIMIZERS.items()
    ],
}  # fmt: skip


def show_noise(folder: Path) -> None:
    """Print the share of mislabelled samples among the kept, over the epochs that prune."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("runs/*/result.json")):
        result = json.loads(path.read_text())
        pruned = [p for p in result["curve"] if p.get("prune/kept_fraction", 1.0) < 1 and "prune/noise_ratio" in p]
        if pruned:
            found.setdefault(result["label"], []).append(statistics.fmean(p["prune/noise_ratio"] for p in pruned))
    for label, values in found.items():
        print(f"{label}: noisy share among the kept {statistics.fmean(values):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--jobs", default="2")
    args = parser.parse_args()
    sys.argv[1:] = []  # they are not the arguments of what is run
    for name, command in EXPERIMENTS[args.name]:
        folder = Path("results") / args.name / name
        config = [] if "--config" in command else ["--config", f"{HERE}/digits.yaml"]
        shared = ["--output", str(folder), "--seeds", args.seeds, "--jobs", args.jobs]
        lightning_prune(["compare", *config, *command, *shared])
        show_noise(folder)


if __name__ == "__main__":
    main()
