"""Streams, and several tables, for `test_emulated_device.py`."""

from __future__ import annotations

from collections import Counter

from lightning_prune import InfoBatch, RePB, ScoreRegistry, SelectiveBackprop
from tests.helpers import make_trainer
from tests.streams import IdModel, make_stream
from tests.test_several_tables import NAMES, Semi, loaders

CASES = {
    "weight 0": (lambda: InfoBatch(0.5), lambda: make_stream(), IdModel, {"num_samples": 40}),
    "dropped": (lambda: RePB(0.5), lambda: make_stream(pruned=True), IdModel, {"num_samples": 40}),
    "picks": (lambda: SelectiveBackprop(0.5, start=0.0), lambda: make_stream(), IdModel, {"num_samples": 40}),
    "several": (lambda: InfoBatch(0.5), loaders, Semi, {"loader": NAMES}),
}


def train(name, **trainer):
    """Return what came of a run, and what its steps waited for after the first epoch."""
    from tests.emulated_device import counted

    make, loader, model_class, kwargs = CASES[name]
    steps = Counter()

    class Watched(ScoreRegistry):
        def on_train_batch_end(self, trainer, *args):
            with counted(steps if trainer.current_epoch else Counter()):
                super().on_train_batch_end(trainer, *args)

    class WatchedModel(model_class):
        def weighted_loss(self, losses, **kwargs):
            with counted(steps if self.training and self.current_epoch else Counter()):
                return super().weighted_loss(losses, **kwargs)

    model, registry = WatchedModel(), Watched(**kwargs)
    make_trainer(registry, make(), max_epochs=3, **trainer).fit(model, loader())
    tables = registry.tables or {"": registry}
    return {
        "tables": {f"{key}.{column}": v for key, t in tables.items() for column, v in t.to_dict().items()},
        "saved": registry.saved_fraction,
        "device": next(iter(tables.values())).losses.device.type,
        "steps": dict(steps),
    }
