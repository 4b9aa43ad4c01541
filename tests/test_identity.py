"""Every recorded loss belongs to the right sample, whatever the loader; an oracle carries the index in the batch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate

from lightning_prune import ScoreRegistry, Selection
from tests.helpers import Keep, Model, make_dataset, make_loader, make_trainer, registry_of

SHARES = (0.5, 0.75, 1.0)


def check(trainer, model):
    """The registry holds exactly the losses that the model computed last, and NaN elsewhere."""
    losses = registry_of(trainer).losses
    for index in range(len(losses)):
        if index in model.true_losses:
            assert losses[index].item() == pytest.approx(model.true_losses[index], rel=1e-6), index
        else:
            assert losses[index].isnan(), index
    assert len(model.true_losses) > len(losses) // 2


class OpaqueLoader(DataLoader):
    """A subclass that Lightning cannot re-instantiate."""

    def __init__(self, flavour, *args, **kwargs):
        self.flavour = flavour
        super().__init__(make_dataset(), batch_size=4, shuffle=True)


class ReversedBatches(BatchSampler):
    """Forms its own batches from the sampler's ids, of changing size."""

    def __iter__(self):
        ids = list(self.sampler)
        for start in range(0, len(ids), self.batch_size):
            yield ids[start : start + self.batch_size][::-1]


class DictDataset(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        x, y, index = make_dataset()[i]
        return {"x": x, "y": y, "index": index}


class DictModel(Model):
    def losses(self, batch):
        return super().losses((batch["x"], batch["y"], batch["index"]))


class TensorDatasetOnly(Dataset):
    """Samples are one tensor; its last element is the index."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.cat([make_dataset()[i][0], torch.tensor([float(i)])])


class TensorModel(Model):
    def losses(self, batch):
        x, index = batch[:, :8], batch[:, 8].long()
        return super().losses((x, (x[:, 0] > 0).long(), index))


LOADERS = {
    "plain": (Model, lambda: make_loader()),
    "sequential": (Model, lambda: make_loader(shuffle=False)),
    "odd_batch": (Model, lambda: make_loader(batch_size=7)),
    "drop_last": (Model, lambda: make_loader(batch_size=7, drop_last=True)),
    "workers": (Model, lambda: make_loader(num_workers=2)),
    "persistent": (Model, lambda: make_loader(num_workers=2, persistent_workers=True)),
    "collate": (Model, lambda: make_loader(collate_fn=lambda samples: default_collate(samples))),
    "opaque": (Model, lambda: OpaqueLoader("vanilla")),
    "own_batches": (
        Model,
        lambda: DataLoader(
            make_dataset(), batch_sampler=ReversedBatches(torch.utils.data.RandomSampler(make_dataset()), 6, False)
        ),
    ),
    "own_batches_workers": (
        Model,
        lambda: DataLoader(
            make_dataset(),
            batch_sampler=ReversedBatches(torch.utils.data.SequentialSampler(make_dataset()), 6, False),
            num_workers=2,
        ),
    ),
    "dict": (DictModel, lambda: DataLoader(DictDataset(), 4, shuffle=True)),
    "tensor": (TensorModel, lambda: DataLoader(TensorDatasetOnly(), 4, shuffle=True)),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("weight", [None, 2.0], ids=["unweighted", "weighted"])
def test_every_loader(name, weight):
    make_model, make = LOADERS[name]
    model, trainer = make_model(), make_trainer(Keep(*SHARES, weight=weight), max_epochs=3)
    trainer.fit(model, make())
    check(trainer, model)


@pytest.mark.parametrize("where", ["model", "datamodule", "fit"])
@pytest.mark.parametrize("kwargs", [{}, {"limit_train_batches": 3}, {"accumulate_grad_batches": 3}], ids=str)
def test_every_source(where, kwargs):
    class OwnLoader(Model):
        def train_dataloader(self):
            return make_loader()

    class Data(LightningDataModule):
        def train_dataloader(self):
            return make_loader()

    trainer = make_trainer(Keep(*SHARES), max_epochs=6, **kwargs)
    model = OwnLoader() if where == "model" else Model()
    data = {"model": {}, "datamodule": {"datamodule": Data()}, "fit": {"train_dataloaders": make_loader()}}[where]
    trainer.fit(model, **data)
    check(trainer, model)


class DictOfLoaders(Model):
    def losses(self, batch):
        return super().losses(batch["main"])


@pytest.mark.filterwarnings("ignore:Pruning saves no steps")
@pytest.mark.parametrize("other", [12, 200], ids=["shorter", "longer"])
@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", None])
def test_one_of_several_loaders(other, mode):
    loaders = {"main": make_loader(), "other": make_loader(other)}
    given = loaders if mode is None else CombinedLoader(loaders, mode)
    model, trainer = DictOfLoaders(), make_trainer(ScoreRegistry(loader="main"), Keep(*SHARES), max_epochs=3)
    trainer.fit(model, given)
    check_losses = registry_of(trainer).losses
    seen = [i for i in model.true_losses if not check_losses[i].isnan()]
    assert all(check_losses[i].item() == pytest.approx(model.true_losses[i], rel=1e-6) for i in seen)
    assert len(seen) >= 12
    # in the second epoch 30 samples, 8 batches, are kept of the main loader
    batches = {"min_size": min(8, other // 4)}.get(mode, max(8, other // 4))
    assert model.epoch_batches(2)[1] == batches


def test_collate_that_returns_none():
    def collate(samples):
        return None if 3 in [int(s[2]) for s in samples] else default_collate(samples)

    model, trainer = Model(), make_trainer(Keep(*SHARES), max_epochs=3)
    with pytest.warns(UserWarning, match="yielded None"):
        trainer.fit(model, make_loader(collate_fn=collate))
    check(trainer, model)
    assert 3 not in model.true_losses


def test_collate_that_drops_samples_is_told_to_pass_indices():
    trainer = make_trainer(Keep(*SHARES))
    with pytest.raises(ValueError, match=r"weighted_loss\(losses, indices=indices\)"):
        trainer.fit(Model(), make_loader(collate_fn=drop_odd))


def drop_odd(samples):
    kept = [s for s in samples if int(s[2]) % 5 != 0] or samples[:1]
    return default_collate(kept)


@pytest.mark.parametrize("weight", [None, 2.0], ids=["unweighted", "weighted"])
def test_indices_override(weight):
    class Explicit(Model):
        def training_step(self, batch, batch_idx):
            loss = self.weighted_loss(self.losses(batch), indices=batch[2])
            weights = 1.0 if weight is None else weight
            expected = weights * sum(self.true_losses[i] for i in batch[2].tolist()) / len(batch[2])
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            return loss

    model, trainer = Explicit(), make_trainer(Keep(*SHARES, weight=weight), max_epochs=3)
    trainer.fit(model, make_loader(collate_fn=drop_odd))
    check(trainer, model)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_skipped_steps_are_not_recorded():
    class Skips(Model):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    model, trainer = Skips(), make_trainer(Keep(1.0), max_epochs=2)
    trainer.fit(model, make_loader())
    check(trainer, model)


def test_exception_then_another_fit():
    class Fails(Model):
        fail = True

        def training_step(self, batch, batch_idx):
            if self.fail and self.current_epoch == 1 and batch_idx == 2:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    model, trainer, loader = Fails(), make_trainer(Keep(*SHARES), max_epochs=3), make_loader()
    batch_sampler = loader.batch_sampler
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(model, loader)
    assert loader.batch_sampler is batch_sampler
    assert trainer.train_dataloader is loader
    assert type(trainer.fit_loop._data_source).__name__ == "_DataLoaderSource"
    assert model._pruning_step is None
    model.fail = False
    trainer.fit(model, loader)
    check(trainer, model)
    assert trainer.train_dataloader is loader


def test_large_ids():
    """Ids above 2**24, where float32 would round: one huge dataset, a tiny selection."""
    n, ids = 2**24 + 1000, [2**24 + 1, 2**24 + 3, 17, 2**24 + 999]

    class Huge(Dataset):
        def __len__(self):
            return n

        def __getitem__(self, i):
            generator = torch.Generator().manual_seed(i)
            return torch.randn(8, generator=generator), i % 2, i

    class Few(Keep):
        def select(self, registry, epoch, generator):
            return Selection(torch.tensor(ids))

    model, trainer = Model(), make_trainer(Few(1.0), max_epochs=2)
    trainer.fit(model, DataLoader(Huge(), 2, shuffle=True))
    losses = registry_of(trainer).losses
    assert sorted(model.true_losses) == sorted(ids)
    assert (~losses.isnan()).nonzero().squeeze(1).tolist() == sorted(ids)
    assert all(losses[i].item() == pytest.approx(model.true_losses[i], rel=1e-6) for i in ids)


def test_losses_of_every_precision_are_recorded_in_float32():
    model, trainer = Model(), make_trainer(Keep(*SHARES), max_epochs=3, precision="bf16-mixed")
    trainer.fit(model, make_loader())
    check(trainer, model)
    assert registry_of(trainer).losses.dtype == torch.float32


def test_reference_of_the_oracle():
    """The oracle itself can fail: a model that lies about its indices is found out."""

    class Liar(Model):
        def losses(self, batch):
            x, y, index = batch
            return super().losses((x, y, index.flip(0)))

    model, trainer = Liar(), make_trainer(Keep(*SHARES), max_epochs=3)
    trainer.fit(model, make_loader())
    with pytest.raises(AssertionError):
        check(trainer, model)
