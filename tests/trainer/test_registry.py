"""The registry as a user sees it, in a fit: its state, its place, and what authors can do with it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lightning_prune import InfoBatch, PruningCallback, RandomPruning, ScoreRegistry, Selection
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of


def fitted(*callbacks, **kwargs):
    trainer, model = make_trainer(*(callbacks or (Keep(1.0, 0.5),)), **kwargs), Model()
    trainer.fit(model, make_loader())
    return registry_of(trainer), model


def test_public_state():
    registry, model = fitted(max_epochs=3)
    assert registry.num_samples == 40
    assert registry.epoch == 3
    assert registry.losses.shape == registry.counts.shape == (40,)
    assert registry.losses.dtype == torch.float32
    assert registry.counts.dtype == torch.int16
    assert len(registry.selection) == 40
    assert registry.counts.sum() == 100
    assert registry.losses.device == model.device


def test_is_first_among_the_callbacks_and_found_again():
    class After(Keep):
        pass

    mine = ScoreRegistry()
    trainer = make_trainer(After(0.5), mine)
    trainer.fit(Model(), make_loader())
    assert trainer.callbacks[0] is mine
    trainer.validate(Model(), make_loader(8), verbose=False)
    trainer.test_loop  # noqa: B018  (still usable)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(Model(), make_loader())
    assert [c for c in trainer.callbacks if isinstance(c, ScoreRegistry)] == [mine]


def test_alone_it_records_full_epochs():
    registry, model = fitted(ScoreRegistry(), max_epochs=2)
    assert model.epoch_batches(2) == [10, 10]
    assert registry.counts.tolist() == [2] * 40
    assert not registry.losses.isnan().any()


class Counting(PruningCallback):
    """A method with state of its own: how often, and when last, each sample was recorded."""

    record_names = ("double",)

    def setup_columns(self, registry):
        registry.add_column("times", dtype=torch.int32)
        registry.add_column("history", fill=float("nan"), slots=3)
        registry.add_state("epochs", torch.zeros(1))

    def per_sample(self, step):
        assert step.indices.shape == step.losses.shape
        return {"double": 2 * step.losses}

    def on_epoch_recorded(self, registry, record):
        registry.column("times")[record.indices] += 1
        registry.column("history")[registry.epoch % 3, record.indices] = record.extra["double"]
        registry.state["epochs"] += 1
        assert torch.equal(record.extra["double"], 2 * record.losses)
        assert torch.equal(registry.losses[record.indices], record.losses)
        assert record.steps.tolist() == [p // 4 for p in range(len(record.indices))]

    def metrics(self, registry):
        return {"epochs": registry.state["epochs"][0]}

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(20)) if epoch % 2 else Selection.all(registry.num_samples)


def test_columns_of_a_method(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    trainer, model = make_trainer(Counting(), checkpoint, enable_checkpointing=True), Model()
    trainer.fit(model, make_loader())
    registry = registry_of(trainer)
    assert registry.column("times").tolist() == registry.counts.tolist() == [4] * 20 + [2] * 20
    assert trainer.callback_metrics["prune/epochs"] == 4
    resumed = make_trainer(Counting())
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        resumed.fit(Model(), make_loader(), ckpt_path=tmp_path / "step=21.ckpt")
    for name, values in registry.to_dict().items():
        assert torch.equal(values.nan_to_num(-1), registry_of(resumed).to_dict()[name].nan_to_num(-1)), name


def test_non_finite_losses_are_kept_counted_and_warned_about():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            bad = batch[2] % 10 == 3
            return self.weighted_loss(torch.where(bad, losses.detach() * float("nan"), losses), mask=None).nan_to_num(0)

    trainer, model = make_trainer(InfoBatch(), max_epochs=3), Broken()
    with pytest.warns(UserWarning, match=r"4 of \d+ losses were NaN or infinite"):
        trainer.fit(model, make_loader())
    registry = registry_of(trainer)
    assert registry.losses.isnan().nonzero().squeeze(1).tolist() == [3, 13, 23, 33]
    assert registry.counts[[3, 13, 23, 33]].tolist() == [3] * 4
    assert trainer.callback_metrics["prune/nonfinite"] == 4
    assert trainer.callback_metrics["prune/score_mean"].isfinite()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_datasets(n):
    for callback in (InfoBatch(), RandomPruning(0.9), Keep(1.0)):
        trainer, model = make_trainer(callback, max_epochs=3), Model()
        trainer.fit(model, make_loader(n, batch_size=2))
        assert min(len(model.epoch_ids(e)) for e in range(3)) >= 1


@pytest.mark.parametrize("callback", [InfoBatch(), RandomPruning(), ScoreRegistry()], ids=lambda c: type(c).__name__)
def test_callbacks_can_be_copied_and_pickled(callback):
    for copied in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        trainer = make_trainer(copied, max_epochs=2)
        trainer.fit(Model(), make_loader())
    deep = copy.deepcopy(registry_of(trainer))
    assert torch.equal(deep.counts, registry_of(trainer).counts)


def test_loader_and_trainer_are_as_before_after_a_fit():
    loader = make_loader(num_workers=2, persistent_workers=True)
    parts = (loader.batch_sampler, loader.sampler, loader.dataset, loader._iterator)
    trainer, model = make_trainer(Keep(0.5)), Model()
    trainer.fit(model, loader)
    assert (loader.batch_sampler, loader.sampler, loader.dataset, loader._iterator) == parts
    assert trainer.train_dataloader is loader
    assert type(trainer.fit_loop._data_source).__name__ == "_DataLoaderSource"
    assert model._pruning_step is None
