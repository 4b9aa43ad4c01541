"""Full data for fewer epochs, what a method has to beat: ``python -m examples.experiments.fewer_epochs [--seeds 3]``.

The tables of docs/experiments.md's (a) are at 30, 50 and 70 % saved; here are the whole epochs that are nearest.
"""

from __future__ import annotations

import argparse

from examples.experiments.reporting import add_seeds, seeds_of, spread, table
from lightning_prune.cli import PruneCLI
from lightning_prune.compare.control import control_epochs

DATA = {"digits": ("examples/experiments/digits.yaml", 20), "glyphs": ("examples/glyphs/compare.yaml", 8)}
RATIOS = (0.3, 0.5, 0.7)


def train(config: str, seed: int, epochs: int) -> float:
    """Return the accuracy of a run with a learning-rate schedule that ends with it."""
    args = ["fit", f"--config={config}", f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"]
    cli = PruneCLI(args=[*args, "--trainer.enable_progress_bar=false"], save_config_callback=None)
    return float(cli.trainer.callback_metrics["val_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_seeds(parser, 3)
    args = parser.parse_args()
    rows = []
    for name, (config, whole) in DATA.items():
        for epochs in [control_epochs(whole, ratio) or whole for ratio in RATIOS]:
            found = [train(config, seed, epochs) for seed in seeds_of(args)]
            saved = f"{1 - epochs / whole:.1%}".replace("%", " %")
            rows.append([f"{name}, {epochs} of {whole}", spread(found, 4), saved])
    print(table(["full data, epochs", "val_accuracy", "saved"], rows))


if __name__ == "__main__":
    main()
