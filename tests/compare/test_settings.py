"""Each method, set as its class says, saves what it was asked to save, in real runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_prune
from lightning_prune.compare.methods import Method, known_methods, own_methods
from lightning_prune.core.ratio import UnreachableError, known_curve, measured_curve, solve
from lightning_prune.scoring import StaticPruning
from tests.helpers import Model, make_loader, make_trainer, registry_of

EPOCHS, NUM_SAMPLES, BATCH_SIZE = 16, 800, 80
GIVEN = {
    "StaticPruning": {"scores": torch.arange(float(NUM_SAMPLES))},
    "RHOLoss": {"irreducible_losses": "irreducible.npy"},
    "SelectiveBackprop": {"start": 0.1, "end": 1.0, "interrupt": 0},
}
EPOCH_LEVEL = ["RandomPruning", "RS2", "StaticPruning", "OrderDP", "EpsilonGreedy", "UCB", "ImportanceSampling", "RePB"]
ORDER = {"class_path": "OrderDP", "init_args": {}}
BATCH_LEVEL = ["DivBS", "RHOLoss", "SelectiveBackprop"]


@pytest.fixture(autouse=True)
def _irreducible_losses(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.save("irreducible.npy", np.zeros(NUM_SAMPLES, dtype=np.float32))


def build(class_path, init_args):
    init_args = {key: build(**value) if key == "base" else value for key, value in init_args.items()}
    name = class_path.rpartition(".")[2]
    return (StaticPruning if name == "StaticPruning" else getattr(lightning_prune, name))(**init_args, seed=0)


def saved(method, solved):
    torch.manual_seed(0)
    trainer = make_trainer(build(method.class_path, method.arguments(solved)), max_epochs=EPOCHS)
    trainer.fit(Model(), make_loader(NUM_SAMPLES, BATCH_SIZE))
    return registry_of(trainer).saved_fraction


def method_of(name, **given):
    package = "lightning_prune.scoring" if name == "StaticPruning" else "lightning_prune"
    return Method(name, f"{package}.{name}", {**GIVEN.get(name, {}), **given})


def curve_of(method):
    return known_curve(method.setting, EPOCHS, method.with_defaults())


def saved_if_asked(method, ratio):
    setting = method.setting
    pilots = [(drop, saved(method, setting.arguments(drop))) for drop in setting.pilots]
    curve = measured_curve(setting, pilots) if pilots else curve_of(method)
    return saved(method, solve(method.label, setting, ratio, curve))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", EPOCH_LEVEL)
def test_epoch_level_methods(name, ratio):
    assert saved_if_asked(method_of(name), ratio) == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize("ratio", [0.3, 0.7])
@pytest.mark.parametrize("name", BATCH_LEVEL)
def test_batch_level_methods_save_in_whole_samples_of_a_batch(name, ratio):
    assert 0 <= saved_if_asked(method_of(name), ratio) - ratio < 1 / BATCH_SIZE


def test_selective_backprop_is_active_in_the_middle_and_not_in_every_batch():
    method = Method("SelectiveBackprop", "lightning_prune.SelectiveBackprop")
    assert curve_of(method)[-1] == (0.9, pytest.approx(0.9 * 7 / EPOCHS / 2))  # epochs 8 to 14 of 16
    assert saved_if_asked(method, 0.15) == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize("name", EPOCH_LEVEL + BATCH_LEVEL)
def test_what_can_be_reached(name):
    method = method_of(name)
    most = curve_of(method)[-1][1]
    assert saved_if_asked(method, most) == pytest.approx(most, abs=0.03)


@pytest.mark.parametrize("name", EPOCH_LEVEL + BATCH_LEVEL)
def test_warmup_counts(name):
    assert saved_if_asked(method_of(name, warmup_epochs=6), 0.4) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        (Method("InfoBatch", "InfoBatch"), 0.2),
        (Method("InfoBatch", "InfoBatch"), 0.35),
        (Method("SeTa", "SeTa"), 0.6),
        (Method("SeTa", "SeTa"), 0.75),
        (Method("a", "AlignPrune", {"base": {"class_path": "InfoBatch"}, "window": 5}), 0.1),
        (Method("a", "AlignPrune", {"base": {"class_path": "InfoBatch"}, "window": 5}), 0.2),
        (Method("a", "AlignPrune", {"base": {"class_path": "OrderDP"}, "window": 5}), 0.3),
        (Method("a", "AlignPrune", {"base": "RePB", "window": 5}), 0.3),
        (Method("a", "AlignPrune", {"base": {"class_path": "SeTa", "init_args": {"num_groups": 4}}, "window": 5}), 0.3),
        (Method("b", "BatchLossScore", {"base": {"class_path": "InfoBatch"}}), 0.25),
        (Method("b", "BatchLossScore", {"base": {"class_path": "RePB"}}), 0.6),
    ],
)
def test_methods_measured_by_pilots(method, ratio):
    assert saved_if_asked(method, ratio) == pytest.approx(ratio, abs=0.03)


@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        (Method("InfoBatch", "lightning_prune.InfoBatch"), 0.35),
        (Method("SeTa", "lightning_prune.SeTa"), 0.3),
        (Method("a", "lightning_prune.AlignPrune", {"base": ORDER, "window": 5}), 0.3),
        (Method("b", "lightning_prune.BatchLossScore", {"base": {"class_path": "RePB", "init_args": {}}}), 0.6),
    ],
    ids=["InfoBatch", "SeTa", "AlignPrune", "BatchLossScore"],
)
def test_methods_that_needed_pilots_go_by_what_they_have_saved(method, ratio):
    found = method.budgeted()
    assert found.setting.pilots == ()
    (_, (most, reach)) = found.curve(EPOCHS)
    assert ratio < most == reach < 1
    assert saved(found, {"save": ratio}) == pytest.approx(ratio, abs=0.01)


def test_what_needs_no_pilots_stays_as_it_is():
    for name in (*EPOCH_LEVEL, *BATCH_LEVEL):
        assert method_of(name).budgeted() == method_of(name)
    somebodys = Method("Halved", "tests.compare.methods.Halved")
    assert somebodys.budgeted() == somebodys


@pytest.mark.parametrize("base", ["InfoBatch", "RePB"])
def test_a_budget_needs_no_pilots(base):
    method = Method("b", "lightning_prune.Budget", {"base": {"class_path": base, "init_args": {}}})
    assert method.setting.pilots == ()
    assert saved_if_asked(method, 0.35) == pytest.approx(0.35, abs=0.01)
    assert (
        Method("b", "lightning_prune.Budget", {"base": {"class_path": base, "init_args": {}}, "save": 0.2}).setting
        is None
    )


def test_arguments_of_a_base_are_set_beside_its_own():
    method = Method(
        "a", "AlignPrune", {"base": {"class_path": "RePB", "init_args": {"window_batches": 4}}, "window": 5}
    )
    base = {"class_path": "RePB", "init_args": {"window_batches": 4, "target_keep": 0.5}}
    assert method.arguments({"target_keep": 0.5}) == {"base": base, "window": 5}
    assert Method("a", "AlignPrune", {"base": base}).setting is None  # says its ratio: is run as it is


@pytest.mark.parametrize(
    ("name", "ratio", "curve", "match"),
    [
        (
            "RePB",
            0.9,
            [(0.0, 0.0), (0.95, 0.855)],
            "RePB can reach, at most 0.855, but got 0.9. Its first epoch is full",
        ),
        ("OrderDP", 0.995, [(0.0, 0.0), (0.99, 0.99)], "at most 0.990, but got 0.995"),
        (
            "InfoBatch",
            0.7,
            [(0.0, 0.0), (0.9, 0.594)],
            r"most 0.594 \(measured by pilot runs\), but got 0.7. It only le",
        ),
        ("SeTa", 0.3, [(0.0, 0.444), (0.9, 0.95)], r"at least 0.444 and at most 0.950 \(measured by pilot runs\), but"),
    ],
)
def test_unreachable_ratios_say_what_is_reachable(name, ratio, curve, match):
    with pytest.raises(UnreachableError, match=match):
        solve(name, own_methods()[name].set_by_ratio, ratio, curve)


def test_ratios_between_pilots_are_interpolated():
    setting = lightning_prune.InfoBatch.set_by_ratio
    curve = measured_curve(setting, [(0.8, 0.5), (0.4, 0.2), (0.5, 0.15)])
    assert curve[:3] == [
        (0.0, 0.0),
        (0.4, 0.2),
        (0.8, 0.5),
    ]  # a setting that saves less than a lower one does not count
    assert curve[3:] == [(0.9, pytest.approx(0.5 + 0.35 / 3))]
    assert solve("InfoBatch", setting, 0.35, curve) == {"prune_ratio": pytest.approx(0.6)}
    assert measured_curve(setting, [(0.5, 0.3), (0.9, 0.2)]) == [(0.0, 0.0), (0.5, 0.3)]


def test_every_exported_method_can_be_named_or_says_what_it_needs():
    base = lightning_prune.PruningCallback
    things = {name: getattr(lightning_prune, name) for name in lightning_prune.__all__}
    methods = {n for n, thing in things.items() if isinstance(thing, type) and issubclass(thing, base)} - {
        base.__name__
    }
    needy = {name for name, method in own_methods().items() if method.needs_arguments is not None}
    assert methods == {*known_methods(), *needy}
    for name in known_methods():
        assert build(name, own_methods()[name].set_by_ratio.arguments(0.5))


@pytest.mark.parametrize("folder", ["compare", "core", "trainer"])
def test_nothing_below_the_methods_knows_one_by_name(folder):
    """A method is one file: all others learn from its class what they need. Examples in docstrings may name some."""
    name = re.compile(rf"\b({'|'.join(own_methods())})\b")
    for path in (Path(lightning_prune.__file__).parent / folder).rglob("*.py"):
        code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith((">>>", "..."))]
        assert not [line for line in code if name.search(line)], path
