"""Is this still the program that docs/cifar.md was measured with? ``python -m examples.cifar.fingerprint``.

Its tables take hours, and images that a test does not have. So the same networks, schedule, images' moves and methods
train for a few steps on drawn images, and the loss that this ends with is compared with that in docs/cifar.md: a change
to any of them shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from examples.cifar import run
from lightning_prune.cli import PruneCLI


def write_drawn(root: Path, images_per_file: int = 32) -> None:
    """Write drawn images in CIFAR-10's format: 4 x 4 fields of colour for each class, under noise.

    Of the human labels, the first 40 % of the worst are wrong.
    """
    rng = np.random.default_rng(0)
    patterns = rng.integers(96, 160, (10, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3).reshape(10, 3072)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    clean = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        targets = rng.integers(0, 10, images_per_file)
        images = (patterns[targets] + rng.normal(0, 100, (images_per_file, 3072))).clip(0, 255)
        (folder / name).write_bytes(pickle.dumps({b"data": images.astype(np.uint8), b"labels": targets.tolist()}))
        clean += [targets] if name != "test_batch" else []
    labels = np.concatenate(clean)
    worst = labels.copy()
    worst[: 2 * len(labels) // 5] = (worst[: 2 * len(labels) // 5] + 1) % 10
    for human, given in {"aggre": labels, "random1": labels, "worse": worst}.items():
        np.save(root / f"human_{human}.npy", given)


def loss(name: str, method: dict[str, Any] | None = None, *arguments: str) -> float:
    """Return the validation loss after a short training of an experiment on drawn images.

    In double precision the steps end alike on any machine; a tenth of the learning rate keeps so short a run steady.

    Args:
        name: The experiment. ``static`` scores first, and trains on the half that TDDS keeps.
        method: A callback. None: the experiment's own, or full data.
        *arguments: Further ones of ``lightning-prune fit``.
    """
    exact = ["--trainer.precision=64-true", "--data.batch_size=16", "--model.lr=0.01"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        root = Path(folder)
        write_drawn(root)
        args = run.make_parser().parse_args([name, "--data_root", folder, "--epochs", "4"])
        if name == "static":
            method = yaml.safe_load(run.score(args, root / name, *exact).read_text())["TDDS"]
            method["init_args"]["prune_ratio"] = 0.5
        callback = [] if method is None else [f"--trainer.callbacks+={json.dumps(method)}"]
        own = ["fit", *run.shared(args), *exact, "--seed_everything=0", "--trainer.enable_progress_bar=false"]
        cli = PruneCLI(args=[*own, *arguments, *callback], save_config_callback=None)
        return float(cli.trainer.callback_metrics["val_loss"])


def human_noise(label: str) -> float:
    """Return the loss of a method of ``human-noise``, by its name there."""
    methods = yaml.safe_load(Path(run.HERE, "human_noise.yaml").read_text())
    return loss("human-noise", methods[label], "--data.labels=worst")


ROWS: dict[tuple[str, str], Callable[[], float]] = {
    ("methods", "full data"): partial(loss, "methods"),
    **{("methods", f"`{name}`"): partial(loss, "methods", {"class_path": name}) for name in run.METHODS},
    ("human-noise", "AlignPrune on `InfoBatch`"): partial(human_noise, "AlignPrune on InfoBatch"),
    ("static", "TDDS"): partial(loss, "static"),
}
"""By experiment and method."""


def main() -> None:
    print("| experiment | method | loss, nats |\n|---|---|---:|")
    for (experiment, method), compute in ROWS.items():
        print(f"| `{experiment}` | {method} | {compute():.3f} |")


if __name__ == "__main__":
    main()
