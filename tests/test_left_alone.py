"""`overfit_batches` trains a few batches over and over: such a run is Lightning's own, with one warning."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import AlignPrune, InfoBatch, ScoreRegistry, SelectiveBackprop
from lightning_prune.analysis import PruningMonitor
from lightning_prune.scoring import ScoreRecorder
from tests import contract
from tests.helpers import Model, PlainModel, make_loader, make_trainer, registry_of

pytestmark = pytest.mark.filterwarnings("ignore:.*(overfit_batches=|train_dataloader`'s sampler|Replacing it).*")
OURS = "Trainer.overfit_batches=2.. trains the same few batches.*not pruned.*limit_train_batches"


@cache
def plain_run():
    model = PlainModel()
    make_trainer(overfit_batches=2).fit(model, make_loader(shuffle=False))
    return model


@pytest.mark.filterwarnings("default:Trainer")
@pytest.mark.parametrize("case", contract.CASES)
def test_every_method(case):
    plain, model = plain_run(), Model()
    trainer = make_trainer(contract.make(case), overfit_batches=2)
    with pytest.warns(UserWarning, match=OURS) as warned:
        trainer.fit(model, make_loader(shuffle=False))
    assert sum("is not pruned, and no losses are recorded" in str(w.message) for w in warned) == 1
    assert model.seen == plain.seen
    assert torch.equal(model.layer.weight, plain.layer.weight)
    assert registry_of(trainer).num_samples == 0
    assert trainer.fit_loop._data_source.__class__.__name__ == "_DataLoaderSource"


def test_everything_of_ours_beside(tmp_path):
    """And what is not pruned needs no mixin, no reference, and no score."""
    monitor, recorder = PruningMonitor(targets=1), ScoreRecorder(["TDDS"], tmp_path / "scores")
    saver = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [ScoreRegistry(), AlignPrune(InfoBatch(), "loader"), monitor, recorder, saver]
    trainer = make_trainer(*callbacks, overfit_batches=2, max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=OURS):
        trainer.fit(Model(), make_loader(shuffle=False))
    assert monitor.history == []
    assert not (tmp_path / "scores").exists()
    with pytest.warns(UserWarning, match=OURS):
        make_trainer(SelectiveBackprop(), overfit_batches=2).fit(PlainModel(), make_loader(shuffle=False))


def test_the_next_fit_is_pruned_again():
    method = InfoBatch(seed=1, anneal_ratio=1)
    registry = ScoreRegistry()
    with pytest.warns(UserWarning, match=OURS):
        make_trainer(registry, method, overfit_batches=2).fit(Model(), make_loader(shuffle=False))
    trainer, model = make_trainer(registry, method), Model()
    trainer.fit(model, make_loader())
    assert registry.counts.sum() == sum(len(ids) for _, ids in model.seen) < 160
