"""What the tests of other packages share: a run, and what must hold after it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune import PruningCallback, ScoreRegistry
from lightning_prune.testing.task import WeightedModel
from tests.helpers import make_trainer, registry_of

IGNORED = ("ignore",)
"""Other packages' advice and deprecations are no matter of ours."""


class PackageModel(WeightedModel):
    """Trains batches ``(x, y, ids)``, and notes each epoch's selection.

    Args:
        by_ids: Tell ``weighted_loss`` the ids, as for a stream.
    """

    def __init__(self, by_ids: bool = False):
        super().__init__()
        self.by_ids = by_ids
        self.selected: list[set[int]] = []

    def on_train_epoch_start(self):
        self.selected.append(set(registry_of(self.trainer).selection.indices.tolist()))

    def losses(self, batch):
        x, y, index = batch
        logits = self.layer(x.float())
        losses = F.cross_entropy(logits, y, reduction="none")
        self.outputs = {"logits": logits.detach(), "targets": y, "features": x}
        if self.by_ids:
            self.outputs["indices"] = index
        self.note(index, losses)
        return losses

    def note(self, index, losses):
        if self.training:
            self.seen.append((self.current_epoch, index.tolist()))
            self.true_losses |= dict(zip(index.tolist(), losses.detach().tolist(), strict=True))


def fit(model, loader, method: PruningCallback, num_samples: int | None = None, **kwargs):
    """Train three epochs, as a user would."""
    torch.manual_seed(0)
    trainer = make_trainer(ScoreRegistry(num_samples=num_samples), method, **{"max_epochs": 3, **kwargs})
    trainer.fit(model, loader)
    return trainer


def check(trainer, model, num_samples: int, *, dropped: bool = True):
    """Each trained sample was selected, each recorded loss is its sample's, and what was saved is what is said."""
    registry, trained = registry_of(trainer), 0
    assert len(model.selected) == 3
    assert min(map(len, model.selected)) < num_samples
    for epoch, selected in enumerate(model.selected):
        ids = model.epoch_ids(epoch)
        trained += len(ids)
        assert set(ids) == (selected if dropped else set(range(num_samples)))
    assert registry.saved_fraction == pytest.approx(1 - trained / (3 * num_samples))
    for i, loss in model.true_losses.items():
        if dropped or i in model.selected[-1]:
            assert float(registry.losses[i]) == pytest.approx(loss, rel=1e-5)
