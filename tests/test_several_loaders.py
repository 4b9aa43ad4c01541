"""Several train loaders, of which one is pruned: what was really trained is said, and who ends the epoch."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune import InfoBatch, ScoreRegistry
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of

EPOCHS = 3


class Two(Model):
    """Trains the one, and keeps how many of its samples each step had, and how many steps there were."""

    def __init__(self):
        super().__init__()
        self.trained = 0
        self.ids: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        own = batch["main"]
        self.trained += 0 if own is None else len(own[2].unique())  # a batch of one may hold it twice
        self.ids.append([] if own is None else own[2].tolist())
        if own is None:  # the step of another loss
            return sum(p.square().sum() for p in self.parameters())
        return super().training_step(own, batch_idx)


def fit(loaders, *callbacks, quiet=True, **kwargs):
    trainer, model = make_trainer(*callbacks, **{"max_epochs": EPOCHS, **kwargs}), Two()
    with warnings.catch_warnings():
        if quiet:
            warnings.filterwarnings("ignore", "Pruning saves no steps")
        trainer.fit(model, loaders)
    return trainer, model


def combined(mode, num=40, other=100):
    return CombinedLoader({"main": make_loader(num), "other": make_loader(other)}, mode)


@pytest.mark.parametrize("other", [8, 36, 100])
@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size"])
@pytest.mark.parametrize("limit", [1.0, 9, 0.5])
def test_what_is_said_to_be_saved_was_not_trained(mode, other, limit):
    """All samples are drawn, as often as the loader begins again."""
    kwargs = {"limit_train_batches": limit}
    _, full = fit(combined(mode, other=other), **kwargs)
    for method in (Keep(1.0, 0.3, 0.75), InfoBatch(0.5)):
        trainer, model = fit(combined(mode, other=other), ScoreRegistry(loader="main"), method, **kwargs)
        assert registry_of(trainer).saved_fraction == pytest.approx(1 - model.trained / full.trained)


def test_a_loader_that_is_not_the_longest_saves_no_steps_and_says_so():
    with pytest.warns(
        UserWarning, match="Pruning saves no steps: the pruned train DataLoader 'main' has 10 batches"
    ) as told:
        trainer, _ = fit(
            {"main": make_loader(), "other": make_loader(100)}, ScoreRegistry("main"), Keep(0.5), quiet=False
        )
    assert trainer.global_step == EPOCHS * 25
    (message,) = (str(w.message) for w in told if "saves no steps" in str(w.message))
    assert "but 'other' has 25 batches" in message
    assert '`CombinedLoader(loaders, "min_size")`' in message
    assert "`ScoreRegistry(loader='other')`" in message


@pytest.mark.parametrize(
    ("mode", "other", "kwargs", "message"),
    [
        ("max_size_cycle", 40, {}, "'other' has 10 batches"),
        ("max_size_cycle", 100, {"limit_train_batches": 8}, "'main' has 8 batches, but 'other' has 8 batches"),
        ("min_size", 32, {}, "ends with 'other' .8 batches"),
        ("max_size_cycle", 36, {}, None),
        ("min_size", 40, {}, None),
        ("min_size", 100, {}, None),
        ("min_size", 32, {"limit_train_batches": 8}, None),
    ],
)
def test_who_ends_the_epoch(mode, other, kwargs, message):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(combined(mode, other=other), ScoreRegistry("main"), Keep(0.5), quiet=False, **kwargs)
    told = [str(w.message) for w in told if "saves no steps" in str(w.message)]
    assert len(told) == (message is not None)
    assert message is None or re.search(message, told[0])


def test_nothing_is_said_where_nothing_is_pruned():
    fit(combined("max_size_cycle"), ScoreRegistry("main"), quiet=False)


def test_positions_in_a_list_are_names():
    class First(Model):
        def losses(self, batch):
            return super().losses(batch[0])

    with pytest.warns(UserWarning, match="the pruned train DataLoader 0 has 10 batches, but 1 has 25 batches"):
        make_trainer(ScoreRegistry(loader=0), Keep(0.5)).fit(First(), [make_loader(), make_loader(100)])


class Endless(IterableDataset):
    """Has no length, and no end."""

    def __iter__(self):
        while True:
            yield torch.zeros(2)


def endless(mode):
    return CombinedLoader({"main": make_loader(), "other": DataLoader(Endless(), 4)}, mode)


ENDLESS = {
    "min_size": ({}, [10, 5, 8]),
    "max_size_cycle": ({"limit_train_batches": 12}, [12, 12, 12]),
    "max_size_cycle, short": ({"limit_train_batches": 6}, [6, 6, 6]),
    "max_size": ({"limit_train_batches": 12}, [12, 12, 12]),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_loader_without_end_beside_ours(name, workers):
    kwargs, steps = ENDLESS[name]
    mode, keep = name.partition(",")[0], Keep(1.0, 0.5, 0.75)
    _, full = fit(endless(mode), **kwargs)
    loaders = endless(mode)
    loaders.flattened = [make_loader(num_workers=workers), loaders.flattened[1]]
    trainer, model = fit(loaders, ScoreRegistry("main"), keep, **kwargs)
    assert len(model.ids) == sum(steps)
    assert trainer.global_step == sum(steps)
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - model.trained / full.trained)
    third = [i for ids in model.ids[sum(steps[:2]) :] for i in ids]
    own = registry_of(trainer).selected.nonzero().flatten().tolist()
    assert set(third) <= set(own)
    assert name == "max_size_cycle, short" or set(third) == set(own)
    for i, loss in model.true_losses.items():
        assert float(registry_of(trainer).losses[i]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size"])
def test_an_epoch_without_end(mode):
    """It ends with the run; nothing was left out in it."""
    kwargs = {"max_epochs": -1, "max_steps": 27}
    if mode == "max_size":
        trainer, model = fit(endless(mode), ScoreRegistry("main"), Keep(0.5), quiet=False, **kwargs)
    else:
        with pytest.warns(UserWarning, match="'main' has 10 batches, but 'other' has no end, and with") as told:
            trainer, model = fit(endless(mode), ScoreRegistry("main"), Keep(0.5), quiet=False, **kwargs)
        (message,) = (str(w.message) for w in told if "saves no steps" in str(w.message))
        assert message.endswith('`CombinedLoader(loaders, "min_size")`.')
    assert trainer.global_step == 27
    selected = set(registry_of(trainer).selected.nonzero().flatten().tolist())
    assert {i for ids in model.ids for i in ids} == selected
    full = 27 * 4 if mode == "max_size_cycle" else 40
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - model.trained / full)


@pytest.mark.parametrize("other", [36, 100])
def test_no_batch_where_ours_has_ended(other):
    """`max_size`: its batch is None, the step trains something else, and nothing is recorded in it."""
    _, full = fit(combined("max_size", other=other))
    trainer, model = fit(combined("max_size", other=other), ScoreRegistry("main"), Keep(1.0, 0.5, 0.75, weight=2.0))
    steps = [max(10, other // 4), max(5, other // 4), max(8, other // 4)]
    assert len(model.ids) == sum(steps) == trainer.global_step
    starts = [0, steps[0], sum(steps[:2])]
    own = [sum(bool(ids) for ids in model.ids[a : a + n]) for a, n in zip(starts, steps, strict=True)]
    assert own == [10, 5, 8]
    assert full.trained == 120
    assert model.trained == 40 + 20 + 30
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - 90 / 120)
    assert len(model.true_losses) == 40
    for i, loss in model.true_losses.items():
        assert float(registry_of(trainer).losses[i]) == pytest.approx(loss, rel=1e-6)


def test_schedules_come_to_their_end_over_steps_that_are_not_ours():
    class Scheduled(Two):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    model = Scheduled()
    trainer = make_trainer(ScoreRegistry("main"), Keep(0.5), max_epochs=EPOCHS)
    trainer.fit(model, combined("max_size", num=40, other=32))
    assert trainer.global_step == EPOCHS * 8
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == EPOCHS * 10
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_where_it_was(mode, workers, tmp_path):
    """In each step: before our loader has ended, in the step of its end, and after."""

    def make():
        return CombinedLoader({"main": make_loader(num_workers=workers), "other": make_loader(60)}, mode)

    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    kwargs = {"max_epochs": 2, "enable_checkpointing": True}
    trainer, model = fit(make(), ScoreRegistry("main"), Keep(0.8, 0.5), checkpoint, **kwargs)
    whole = registry_of(trainer).to_dict()
    steps = len(model.ids)
    for step in sorted({3, 5, 8, 10, steps // 2, steps // 2 + 2, steps - 4, steps - 1} if workers == 0 else {3, 10}):
        resumed, again = make_trainer(ScoreRegistry("main"), Keep(0.8, 0.5), max_epochs=2), Two()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Pruning saves no steps|.*callbacks used to create the checkpoint")
            resumed.fit(again, make(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert again.ids == model.ids[step:], step
        for column, values in registry_of(resumed).to_dict().items():
            assert torch.equal(values.nan_to_num(-1), whole[column].nan_to_num(-1)), column
        assert registry_of(resumed).saved_fraction == registry_of(trainer).saved_fraction
