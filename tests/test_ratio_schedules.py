"""Ratios that change over a run: every method that reads its ratio anew follows a schedule."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
import yaml

from lightning_prune import RS2, InfoBatch, OrderDP, Pruner, RandomPruning, RePB, schedules
from lightning_prune.core.plan import num_keep
from lightning_prune.methods.rs2 import least_used
from lightning_prune.schedules import Cosine, Linear, Steps
from lightning_prune.scoring import StaticPruning
from lightning_prune.testing.method import checkpointing, step_of
from lightning_prune.testing.simulation import Script, simulate
from lightning_prune.testing.task import Outcome, assert_resumed
from tests import contract
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.resume_check import check_resume

EPOCHS, NUM_SAMPLES = 8, 40
RISING = Linear(0.1, 0.5)
SCHEDULES = [RISING, Cosine(0.6, 0.2, begin=0.25), Steps({0.0: 0.25, 0.5: 0.5})]
EXACT = ["DivBS", "EpsilonGreedy", "ImportanceSampling", "RHOLoss", "RS2", "RandomPruning", "SelectiveBackprop", "UCB"]
SETTINGS = {
    "EpsilonGreedy": {"every_n_epochs": 1},
    "SelectiveBackprop": {"start": 0.0, "end": 1.0, "interrupt": 0},
    "UCB": {"every_n_epochs": 1},
}


def trained_by_epoch(method, seed=1):
    """Return how many samples each epoch of a simulated run trained."""
    totals = [float(table.trained.sum()) for table in simulate(method, Script.make(NUM_SAMPLES, EPOCHS), seed)]
    return [int(after - before) for before, after in itertools.pairwise(totals)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", EXACT)
def test_methods_of_exact_counts(name, schedule):
    expected = [num_keep(NUM_SAMPLES, 1 - schedule(epoch / EPOCHS)) for epoch in range(EPOCHS)]
    if name in ("EpsilonGreedy", "ImportanceSampling", "UCB"):
        expected[0] = NUM_SAMPLES
    found = trained_by_epoch(contract.make(name, prune_ratio=schedule, **SETTINGS.get(name, {})))
    assert found == expected


def test_those_whose_counts_depend_on_losses():
    """Each epoch is that of the constant ratio in force, given the same state: the first that differs."""
    for make in (
        lambda ratio: contract.make("InfoBatch", prune_ratio=ratio, anneal_ratio=1.0),
        lambda ratio: contract.make("SeTa", prune_ratio=ratio),
        lambda ratio: contract.make("AlignPrune", base=InfoBatch(ratio, anneal_ratio=1.0)),
        lambda ratio: contract.make("RePB", prune_ratio=ratio),
    ):
        jump = trained_by_epoch(make(Steps({0.0: 0.1, 0.5: 0.8})))
        low = trained_by_epoch(make(0.1))
        assert jump[:4] == low[:4]
        assert jump[4] < low[4] - 4


def test_the_shares_of_other_names():
    keep = Linear(1.0, 0.2)
    found = trained_by_epoch(OrderDP(explore_ratio=1.0, exploit_ratio=keep))
    assert found == [num_keep(NUM_SAMPLES, keep(epoch / EPOCHS)) for epoch in range(EPOCHS)]
    runs = [trained_by_epoch(RePB(target_keep=Linear(1.0, 0.5)), seed) for seed in range(30)]
    means = torch.tensor(runs).float().mean(0) / NUM_SAMPLES
    expected = torch.tensor([1.0, *(1.0 - 0.5 * epoch / EPOCHS for epoch in range(1, EPOCHS))])
    assert means == pytest.approx(expected, abs=5 * 0.5 / (30 * NUM_SAMPLES) ** 0.5)  # coins: five standard errors


def test_steps_are_the_progress_where_they_end_the_run():
    seen = []

    def ratio(progress):
        seen.append(progress)
        return 0.5 if progress >= 0.5 else 0.0

    method = RandomPruning(ratio)
    seen.clear()
    trainer, model = make_trainer(method, max_epochs=-1, max_steps=30), Model()
    trainer.fit(model, make_loader())
    assert model.epoch_batches(4) == [10, 10, 5, 5]
    assert seen == [0.0, 1 / 3, 2 / 3, 25 / 30]


@pytest.mark.parametrize("name", ["RS2", "DivBS"])
def test_resume(name, tmp_path):
    check_resume(lambda: contract.make(name, prune_ratio=RISING), tmp_path)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_resume_of_a_run_that_steps_end(tmp_path):
    """In the middle of an epoch the progress is that at its start, not that of the checkpoint."""

    def fit(ckpt_path=None):
        callbacks = [RandomPruning(RISING, seed=1), *([] if ckpt_path else checkpointing(tmp_path))]
        options = {"max_epochs": -1, "max_steps": 36, "enable_checkpointing": ckpt_path is None}
        trainer = make_trainer(*callbacks, **options)
        trainer.fit(model := Model(), make_loader(), ckpt_path=ckpt_path)
        return Outcome.of(trainer, model)

    whole = fit()
    for path in sorted(tmp_path.glob("step/*.ckpt"), key=step_of)[1:-1:3]:
        assert_resumed(whole, fit(path))


def test_pruner():
    pruner = Pruner(RandomPruning(RISING), max_epochs=4, seed=0)
    loader = pruner.attach(make_loader())
    weight, lengths = torch.zeros(()), []
    for _ in pruner.epochs():
        lengths.append(len(loader))
        for x, _, _ in loader:
            pruner.weighted_loss((x.mean(1) - weight) ** 2)
    assert lengths == [9, 8, 7, 6]


def test_rounds_of_changing_size_use_samples_equally():
    counts = torch.zeros(23, dtype=torch.int64)
    for k in (5, 9, 14, 22, 3, 23, 1, 8, 12, 17, 2, 11):
        picked = least_used(counts, k, seed=3).indices
        assert len(picked) == k
        counts[picked] += 1
        assert counts.max() - counts.min() <= 1
    model = Model()
    make_trainer(RS2(Linear(0.2, 0.7), seed=2), max_epochs=6).fit(model, make_loader())
    used = torch.tensor([i for _, ids in model.seen for i in ids]).bincount(minlength=NUM_SAMPLES)
    assert used.max() - used.min() <= 1


def test_a_constant_schedule_is_the_number():
    for name in ("RS2", "InfoBatch", "SeTa", "RePB", "RandomPruning"):
        tables = []
        for ratio in (0.4, lambda progress: 0.4):
            trainer = make_trainer(contract.make(name, prune_ratio=ratio), max_epochs=4)
            trainer.fit(Model(), make_loader())
            tables.append(registry_of(trainer).counts.tolist())
        assert tables[0] == tables[1], name


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: InfoBatch(Linear(0.5, 1.0)), r"`prune_ratio\(1\)` to be a number in \[0, 1\), but got 1.0"),
        (lambda: RandomPruning(lambda p: p - 0.5), r"`prune_ratio\(0\)` to be a number in \[0, 1\), but got -0.5"),
        (lambda: RandomPruning(lambda p: "half"), r"`prune_ratio\(0\)` to be a number in \[0, 1\), but got 'half'"),
        (
            lambda: OrderDP(explore_ratio=Linear(0.0, 1.0)),
            r"`explore_ratio\(0\)` to be a number in \(0, 1\], but got 0",
        ),
        (lambda: StaticPruning(torch.arange(4.0), RISING), "got the schedule Linear.*: StaticPruning chooses once"),
        (lambda: Linear(0.5, 1.5), r"`end` to be a number in \[0, 1\], but got 1.5"),
        (lambda: Cosine(0.5, 0.1, begin=0.9, until=0.1), "`begin` <= `until`, but got 0.9 and 0.1"),
        (lambda: Steps({0.5: 0.1}), r"with which ratio the run begins.*but got {0.5: 0.1}, without a key 0"),
        (lambda: Steps({0.0: 2}), r"`ratios\[0.0\]` to be a number in \[0, 1\], but got 2"),
    ],
)
def test_refusals(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_are_values(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert sorted(schedules.__all__) == schedules.__all__


@pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse
def test_yaml(tmp_path):
    from lightning_prune.cli import PruneCLI

    ratio = {"class_path": "lightning_prune.schedules.Linear", "init_args": {"start": 0.1, "end": 0.5}}
    trainer = {
        "callbacks": [{"class_path": "RandomPruning", "init_args": {"prune_ratio": ratio}}],
        "logger": False,
        "max_epochs": 2,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"class_path": "tests.helpers.ModelWithData"}, "trainer": trainer}))
    cli = PruneCLI(args=["--config", str(path)], run=False, save_config_callback=None)
    (method,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, RandomPruning))
    assert method.prune_ratio == RISING
    assert yaml.safe_load(cli.parser.dump(cli.config))["trainer"]["callbacks"][0]["init_args"]["prune_ratio"] == {
        **ratio,
        "init_args": {**ratio["init_args"], "begin": 0.0, "until": 1.0},
    }
