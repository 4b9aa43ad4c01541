"""Networks of several layers, trained on digits, on whichever device."""

from __future__ import annotations

from collections import Counter
from functools import partial

import lightning.pytorch as L

from examples.digits.task import DigitsData, DigitsModel
from examples.experiments.noise import NoisyModel
from lightning_prune import InfoBatch, ScoreRegistry
from tests.devices import EPOCHS, watched
from tests.helpers import make_trainer

CASES = {"MLP": NoisyModel, "CNN": partial(DigitsModel, 4)}


def train(name, in_step, **trainer):
    """Train, and return what came of it, and what our part of the steps waited for.

    Args:
        name: Of the network.
        in_step: Makes the context of what a step does for us, given where to count.
        trainer: Arguments of the Trainer.
    """
    L.seed_everything(0, verbose=False)
    model, steps = CASES[name](), Counter()
    registry = watched(ScoreRegistry(), in_step, steps)
    run = make_trainer(registry, InfoBatch(seed=0), max_epochs=EPOCHS, **trainer)
    run.fit(model, DigitsData(batch_size=120))
    return {
        "weights": {key: value.cpu() for key, value in model.state_dict().items()},
        "table": registry.to_dict(),
        "saved": registry.saved_fraction,
        "accuracy": float(run.callback_metrics["val_accuracy"]),
        "device": registry.losses.device.type,
        "steps": dict(steps),
    }
