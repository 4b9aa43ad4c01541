"""Several train loaders, of which one is pruned: what was really trained is said, and who ends the epoch."""

from __future__ import annotations

import re
import warnings

import pytest
from lightning.pytorch.utilities import CombinedLoader

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
        self.trained += 0 if own is None else len(own[2])
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
