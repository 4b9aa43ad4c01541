"""Other callbacks, other Trainers, and repeated calls, beside pruning."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from lightning_prune import InfoBatch, WeightedLossMixin
from tests.helpers import Keep, Model, make_dataset, make_loader, make_trainer, registry_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(accumulate_grad_batches|swa|learning rate|lr_find|batch size|weights_only|pkg_resources)"
)
LENGTHS = [10, 5, 10, 5]


class Tunable(Model):
    """Has what the tuners change, and loaders of its own."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 0.1, 4

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return make_loader(batch_size=self.batch_size)

    def val_dataloader(self):
        return make_loader(8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "tuner",
    [lambda: LearningRateFinder(num_training_steps=12), lambda: BatchSizeFinder(steps_per_trial=2, max_trials=1)],
    ids=["lr_finder", "batch_size_finder"],
)
def test_tuners_see_full_epochs_and_leave_no_trace(tuner, tmp_path):
    trainer = make_trainer(Keep(1.0, 0.5), tuner(), enable_checkpointing=True, default_root_dir=tmp_path)
    model = Tunable()
    trainer.fit(model)
    registry = registry_of(trainer)
    assert registry.counts.sum() == 40 + 20 + 40 + 20
    last = [ids for epoch, ids in model.seen if epoch == 3]
    assert sum(map(len, last)) == 20
    assert all(
        registry.losses[i].item() == pytest.approx(model.true_losses[i])
        for i in sum(last, [])  # noqa: RUF017
    )


def test_gradient_accumulation_scheduler():
    model = Model()
    make_trainer(Keep(1.0, 0.5), GradientAccumulationScheduler({0: 1, 2: 3})).fit(model, make_loader())
    assert model.epoch_batches(4) == LENGTHS
    assert len(model.lrs) == 10 + 5 + 4 + 2


@pytest.mark.filterwarnings("ignore")
def test_stochastic_weight_averaging():
    trainer, model = make_trainer(Keep(1.0, 0.5), StochasticWeightAveraging(0.05, swa_epoch_start=2)), Model()
    trainer.fit(model, make_loader())
    assert model.epoch_batches(4) == LENGTHS
    assert registry_of(trainer).counts.sum() == 120


def test_averaged_copies_of_the_module():
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").EMAWeightAveraging
    trainer, model = make_trainer(Keep(1.0, 0.5), averaging()), Model()
    trainer.fit(model, make_loader())
    assert model.epoch_batches(4) == LENGTHS
    assert registry_of(trainer).counts.sum() == 120


def test_several_loggers(tmp_path):
    loggers = [CSVLogger(tmp_path / name) for name in "ab"]
    make_trainer(Keep(1.0, 0.5), logger=loggers).fit(Model(), make_loader())
    for logger in loggers:
        assert "prune/kept_fraction" in (tmp_path / logger.save_dir).joinpath(logger.log_dir, "metrics.csv").read_text()


def test_two_trainers_in_turn_and_evaluation_between():
    first, second = (make_trainer(Keep(1.0, 0.5), max_epochs=2) for _ in range(2))
    models, loader = (Model(), Model()), make_loader()
    for trainer, model in zip((first, second), models, strict=True):
        trainer.validate(model, make_loader(8), verbose=False)
        trainer.fit(model, loader, make_loader(8))
    assert models[0].seen == models[1].seen
    assert registry_of(first) is not registry_of(second)
    assert torch.equal(registry_of(first).losses, registry_of(second).losses)


def test_test_and_predict_around_a_fit():
    """They neither prune nor record."""

    class Tested(Model):
        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.weighted_loss(self.losses(batch)))

        def predict_step(self, batch, batch_idx):
            return self.layer(batch[0])

    trainer, model = make_trainer(Keep(1.0, 0.5)), Tested()
    before = trainer.test(model, make_loader(), verbose=False)
    trainer.fit(model, make_loader())
    table = registry_of(trainer).to_dict()
    after = trainer.test(model, make_loader(), verbose=False)
    assert len(torch.cat(trainer.predict(model, make_loader()))) == 40
    assert after[0]["test_loss"] < before[0]["test_loss"]
    for name, values in registry_of(trainer).to_dict().items():
        assert torch.equal(values, table[name])
    assert model.epoch_batches(4) == LENGTHS


class Separate:
    """The step of a module, whichever package its base comes from."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 2)
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(self.current_epoch)
        losses = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1], reduction="none")
        return self.weighted_loss(losses)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_the_package_of_its_own_works_alike(tmp_path):
    """`import pytorch_lightning` is another package with the same classes."""
    pl = pytest.importorskip("pytorch_lightning")
    weights = []
    for package in (L, pl):

        class Module(Separate, WeightedLossMixin, package.LightningModule):
            pass

        kwargs = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        folder = tmp_path / package.__name__
        checkpoint = package.callbacks.ModelCheckpoint(folder, save_last=True)
        trainer = package.Trainer(max_epochs=3, callbacks=[InfoBatch(seed=1, anneal_ratio=1), checkpoint], **kwargs)
        trainer.fit(Module(), make_loader())
        trainer = package.Trainer(
            max_epochs=5, callbacks=[InfoBatch(seed=1, anneal_ratio=1)], enable_checkpointing=False, **kwargs
        )
        module = Module()
        trainer.fit(module, make_loader(), ckpt_path=folder / "last.ckpt")
        assert set(module.batches) == {3, 4}
        weights.append(module.layer.weight)
    assert torch.equal(*weights)


def test_dataset_helper_is_deterministic():
    assert torch.equal(make_dataset().tensors[0], make_dataset().tensors[0])
