"""The registry as a user sees it: state, columns, export; and what authors can do with it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from lightning_prune import InfoBatch, PruningCallback, RandomPruning, ScoreRegistry, Selection
from lightning_prune.core import export as export_module
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


def test_before_training():
    registry = ScoreRegistry()
    assert (registry.num_samples, registry.epoch, registry.selection) == (0, 0, None)
    with pytest.raises(RuntimeError, match="Run `trainer.fit`"):
        _ = registry.losses
    with pytest.raises(KeyError, match="one of \\[\\], but got 'window'"):
        registry.column("window")


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


def test_column_of_another_shape_is_refused():
    registry, _ = fitted(Counting())
    with pytest.raises(ValueError, match=r"column 'history' of shape \(5, 40\).*the checkpoint holds \(3, 40\)"):
        registry.add_column("history", slots=5)


def test_replaced_scores_are_a_view():
    registry, _ = fitted()
    scores = torch.arange(40.0)
    view = registry.replace_scores(scores)
    assert view.scores is scores
    assert view.losses is registry.losses
    assert registry.scores is registry.losses


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_export(suffix, tmp_path):
    registry, _ = fitted(Counting())
    registry.save(tmp_path / f"table{suffix}")
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(tmp_path / "table.parquet").to_pydict()
        assert len(table["history_2"]) == 40
    else:
        table = dict(np.load(tmp_path / "table.npz"))
        assert table["history"].shape == (3, 40)
    assert list(table["indices"]) == list(range(40))
    assert np.allclose(table["losses"], registry.losses.numpy())
    assert list(table["counts"]) == registry.counts.tolist()
    assert [path.suffix for path in tmp_path.iterdir()] == [suffix or ".npz"]


def test_unknown_format(tmp_path):
    registry, _ = fitted()
    with pytest.raises(ValueError, match=r"`.npz` or `.parquet`, but got '.*table.csv'"):
        registry.save(tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    registry, _ = fitted()
    path = tmp_path / "table.npz"
    registry.save(path)
    before = path.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module.np, "savez", disk_full)
    with pytest.raises(OSError, match="No space left"):
        registry.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


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


def test_counts_outgrow_int16():
    """In a run of more than 32,767 epochs, and through a checkpoint of one."""
    table = ScoreRegistry()
    table.allocate(3, "cpu")
    table.counts.fill_(32_765)
    table.take_selection(Selection(torch.tensor([0, 2])))
    for _ in range(4):
        table.count_selected()
    assert table.counts.tolist() == [32_769, 32_765, 32_769]
    other = ScoreRegistry()
    other.load_columns(table.state_columns(), 3, torch.device("cpu"))
    assert other.counts.tolist() == [32_769, 32_765, 32_769]
    other.take_selection(Selection.all(3))
    other.count_selected()
    assert other.counts.tolist() == [32_770, 32_766, 32_770]
