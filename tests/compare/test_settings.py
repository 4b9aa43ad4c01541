"""Each method, set as the table says, saves what it was asked to save, in real runs."""

from __future__ import annotations

import pytest
import torch

import lightning_prune
from lightning_prune.compare.settings import SETTINGS, UnreachableError, solve
from tests.helpers import Model, make_loader, make_trainer, registry_of

EPOCHS = 16


def saved(name, init_args, epochs=EPOCHS):
    torch.manual_seed(0)
    trainer = make_trainer(getattr(lightning_prune, name)(**init_args, seed=0), max_epochs=epochs)
    trainer.fit(Model(), make_loader(800, 32))
    return registry_of(trainer).saved_fraction


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", ["RandomPruning", "OrderDP", "RePB"])
def test_derived_settings(name, ratio):
    assert saved(name, solve(name, SETTINGS[name], ratio, EPOCHS, 0, 0.0)) == pytest.approx(ratio, abs=0.02)


def test_repb_reaches_its_most():
    most = 0.95 * (EPOCHS - 1) / EPOCHS
    assert saved("RePB", solve("RePB", SETTINGS["RePB"], most, EPOCHS, 0, 0.0)) == pytest.approx(most, abs=0.03)


@pytest.mark.parametrize("name", ["RandomPruning", "OrderDP", "RePB"])
def test_warmup_counts(name):
    init_args = solve(name, SETTINGS[name], 0.4, EPOCHS, 6, 0.0)
    assert saved(name, {**init_args, "warmup_epochs": 6}) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("name", "ratio"), [("InfoBatch", 0.2), ("InfoBatch", 0.35), ("SeTa", 0.6), ("SeTa", 0.75)])
def test_piloted_settings(name, ratio):
    setting = SETTINGS[name]
    pilot = saved(name, setting.pilot)
    assert saved(name, solve(name, setting, ratio, EPOCHS, 0, pilot)) == pytest.approx(ratio, abs=0.03)


@pytest.mark.parametrize(
    ("name", "ratio", "pilot", "match"),
    [
        ("RePB", 0.9, 0.0, "RePB can reach in 10 epochs, at most 0.855, but got 0.9. Its first epoch is full"),
        ("OrderDP", 0.995, 0.0, "at most 0.990, but got 0.995"),
        ("InfoBatch", 0.7, 0.3, r"at most 0.594 \(measured by a pilot run\), but got 0.7. It only leaves out"),
        ("SeTa", 0.3, 0.5, r"at least 0.444 and at most 0.994 \(measured by a pilot run\), but got 0.3. Its window"),
    ],
)
def test_unreachable_ratios_say_what_is_reachable(name, ratio, pilot, match):
    with pytest.raises(UnreachableError, match=match):
        solve(name, SETTINGS[name], ratio, 10, 0, pilot)


def test_rows_are_of_arguments_that_exist():
    for name, setting in SETTINGS.items():
        method = getattr(lightning_prune, name)(**setting.solve(0.5, 0.4))
        assert all(hasattr(method, argument) for argument in setting.arguments)
