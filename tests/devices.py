"""Runs that are the same on every device, for `test_emulated_device.py` and `test_cuda.py`."""

from __future__ import annotations

from collections import Counter

import torch

from lightning_prune import InfoBatch, LabelIssues, PruningMonitor, PruningReport, ScoreRegistry, scoring
from lightning_prune.scoring import ScoreRecorder
from lightning_prune.testing.method import checkpointing, step_of
from tests.helpers import Model, make_loader, make_trainer

NUM_SAMPLES, EPOCHS = 120, 4


def train(method, in_step, in_turn, **trainer):
    """Train and return what came of it, and what was waited for in steps, and in the turns of epochs.

    Args:
        method: The method.
        in_step: Makes the context of what a step does for us, given where to count.
        in_turn: The same of what an epoch's start and end do.
        trainer: Arguments of the Trainer.
    """
    steps, turns = Counter(), []

    class Watched(ScoreRegistry):
        def on_train_batch_start(self, *args):
            with in_step(steps):
                super().on_train_batch_start(*args)

        def on_train_batch_end(self, *args):
            with in_step(steps):
                super().on_train_batch_end(*args)

        def on_train_epoch_start(self, *args):
            turns.append(Counter())
            with in_turn(turns[-1]):
                super().on_train_epoch_start(*args)

        def on_train_epoch_end(self, *args):
            turns.append(Counter())
            with in_turn(turns[-1]):
                super().on_train_epoch_end(*args)

    class WatchedModel(Model):
        def weighted_loss(self, losses, **kwargs):
            with in_step(steps):
                return super().weighted_loss(losses, **kwargs)

    model, registry = WatchedModel(), Watched()
    make_trainer(registry, method, max_epochs=EPOCHS, **trainer).fit(model, make_loader(NUM_SAMPLES, 10))
    return {
        "seen": model.seen,
        "weights": {name: value.cpu() for name, value in model.state_dict().items()},
        "table": registry.to_dict(),
        "state": registry.state_dict(),
        "saved": registry.saved_fraction,
        "device": registry.losses.device.type,
        "steps": dict(steps),
        "turns": [dict(turn) for turn in turns],
    }


TRACKERS = ["TDDS", "AUM", "EL2N", "Forgetting", "DynUnc"]
STEP_HOOKS = ("on_train_batch_start", "on_before_backward", "on_train_batch_end")


def watched(callback, in_step, into):
    """Count what a callback's hooks of a step wait for."""

    def watch(hook):
        def call(*args):
            with in_step(into):
                return hook(*args)

        return call

    for name in STEP_HOOKS:
        setattr(callback, name, watch(getattr(callback, name)))
    return callback


def beside(folder, in_step, ckpt_path=None, **trainer):
    """Train with all that looks on; return what each of them knows, by name, and what their steps waited for."""
    trackers = [getattr(scoring, name)(**({"window": 3} if name in ("TDDS", "DynUnc") else {})) for name in TRACKERS]
    recorder, issues, report = ScoreRecorder(trackers), LabelIssues(), PruningReport(folder / "report.md")
    registry, monitor, steps = ScoreRegistry(), PruningMonitor(), Counter()
    saves = [] if ckpt_path else checkpointing(folder)
    callbacks = [
        watched(one, in_step, steps) for one in (registry, InfoBatch(seed=2), recorder, issues, monitor, report)
    ]
    run = make_trainer(*callbacks, *saves, max_epochs=EPOCHS, enable_checkpointing=bool(saves), **trainer)
    model = Model()
    run.fit(model, make_loader(NUM_SAMPLES, 10), ckpt_path=ckpt_path, weights_only=False)
    parts = {
        "table": registry.to_dict(),
        "weight": model.state_dict(),
        "score": {name: tracker.compute() for name, tracker in zip(TRACKERS, trackers, strict=True)},
        "issue": issues.issues(),
        "report": report.history.columns(),
        "metric": {name: value for name, value in run.callback_metrics.items() if "seconds" not in name},
    }
    found = {f"{part} {name}": value.cpu() for part, values in parts.items() for name, value in values.items()}
    return {"found": found, "steps": dict(steps)}


def train_beside(folder, in_step, where):
    """Return a run that others look on, and what it ends as when it is resumed in the middle of an epoch.

    Args:
        folder: Where checkpoints go.
        in_step: Makes the context of what a step does for us.
        where: Makes arguments of a Trainer that say on which device.
    """
    whole = beside(folder, in_step, **where())
    middle = sorted(folder.glob("step/*.ckpt"), key=step_of)[4]
    held = torch.load(middle, weights_only=False)["callbacks"]["ScoreRegistry"]["losses"]
    return {"whole": whole, "resumed": beside(folder, in_step, middle, **where()), "saved on": held.device.type}
