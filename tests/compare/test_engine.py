"""What is run, in which order, and when it is enough: with runs whose results are made up."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_prune.compare.control import FewerEpochs, control_epochs
from lightning_prune.compare.engine import Comparison, Options
from lightning_prune.compare.jobs import Runner
from lightning_prune.compare.methods import Method, RefusedError, read_methods
from lightning_prune.compare.progress import Bar
from lightning_prune.compare.run import write_json
from lightning_prune.testing.task import one_cycle
from tests.helpers import Model, make_loader, make_trainer

TRAINER = {"max_epochs": 10}
METHODS = ["RandomPruning", "OrderDP", "InfoBatch"]


class Made(Runner):
    """Makes results up: full data has 0.9, methods lose what is said, and all have noise of their seed."""

    def __init__(self, losses, noise=0.002, fails=(), reaches=None):
        self.losses, self.noise, self.fails, self.made, self.reaches = losses, noise, fails, [], reaches or {}

    def run(self, specs, on_end, on_tick):
        for spec in specs:
            self.made.append(spec["name"])
            on_tick([spec])
            if spec["label"] in self.fails:
                on_end(spec, "RuntimeError: oh")
                continue
            ratio = spec["ratio"] or 0.0
            shared, own = (
                np.random.default_rng([spec["seed"], *name.encode()]).normal() for name in ("", spec["label"])
            )
            value = 0.9 + 0.01 * shared - self.losses.get(spec["label"], 0.0) + self.noise * own
            saved = 0.4 * ratio if spec["label"].startswith("pilot") else ratio
            saved = min(saved, self.reaches.get(spec["label"], 1.0))
            metrics = {"val_acc": value, "val_loss": 1 - value, "prune/accepted": 1.0}
            found = {"metrics": metrics, "saved": saved, "seconds": 10 * (1 - saved), "cpu_seconds": 9.0, "threads": 1}
            found |= {"curve": [], "epoch_seconds": 2.0}
            Path(spec["folder"]).mkdir(parents=True, exist_ok=True)
            write_json(Path(spec["result"]), spec | found)
            on_end(spec, None)


def make(folder, losses=None, methods=METHODS, ratios=(0.3,), runner=None, **options):
    found = [method for name in methods for method in read_methods(name)]
    runner = runner or Made(losses or {})
    comparison = Comparison(folder, TRAINER, runner, found, ratios, Options(**options))
    comparison.check()
    runner.made.clear()
    return comparison


def verdicts(comparison):
    result = comparison.result()
    return {(row.label, row.ratio): verdict for row, verdict in zip(result.rows, result.verdicts, strict=True)}


def test_methods_take_turns_so_that_a_busy_hour_meets_all(tmp_path):
    comparison = make(tmp_path)
    comparison.run(2)
    names = ["full-data", "full-data,-7-of-10-epochs", "RandomPruning-0.3", "OrderDP-0.3", "InfoBatch-0.3"]
    expected = [f"{name}-seed-{seed}" for seed in (0, 1) for name in names]
    assert comparison.runner.made == expected
    comparison = make(tmp_path / "fixed", pilots=True)
    comparison.run(2)
    assert comparison.runner.made == ["pilot-of-InfoBatch-0.5-seed-0", *expected]


def test_seeds_begin_where_they_are_told(tmp_path):
    comparison = make(tmp_path, methods=["OrderDP"], control=False, first_seed=7)
    comparison.run(2)
    assert comparison.runner.made == [f"{name}-seed-{seed}" for seed in (7, 8) for name in ("full-data", "OrderDP-0.3")]
    assert "seeds 7 to 8" in comparison.result().notes[0]
    assert "OrderDP at 0.3: seeds 7 to 9; reaches" in comparison.forecast(3)


@pytest.mark.parametrize("fixed", [True, False], ids=["by a pilot", "by its first run"])
def test_cells_out_of_reach_are_marked_and_the_rest_runs(tmp_path, fixed):
    runner = Made({}, reaches={} if fixed else {"InfoBatch": 0.36})
    comparison = make(tmp_path, ratios=(0.3, 0.5), runner=runner, pilots=fixed)
    comparison.run(2)
    result = comparison.result()
    assert set(comparison.unreachable) == {("InfoBatch", 0.5)}
    reach = "at most 0.36" if fixed else "about 0.360 as its run showed, but got 0.5. It only leaves out"
    assert reach in comparison.unreachable["InfoBatch", 0.5]
    assert "InfoBatch-0.3-seed-1" in comparison.runner.made
    assert "InfoBatch-0.5-seed-1" not in comparison.runner.made
    row = result.rows[-1]
    assert (row.label, row.ratio, row.values) == ("InfoBatch", 0.5, {})
    with pytest.raises(RefusedError, match="RandomPruning can reach, at most 0.990, but got 0.995"):
        make(tmp_path, methods=["RandomPruning"], ratios=(0.995,))
    if not fixed:  # ten epochs, of which the first and two of annealing are full
        with pytest.raises(RefusedError, match="InfoBatch can reach, at most 0.6[0-9]*, but got 0.9. It only"):
            make(tmp_path, methods=["InfoBatch"], ratios=(0.9,))


def test_seeds_are_added_until_every_row_is_decided(tmp_path):
    losses = {"OrderDP": 0.3, "full data, 7 of 10 epochs": 0.2}
    comparison = make(tmp_path, losses, until_decided=True, max_seeds=20)
    comparison.run(3)
    found = verdicts(comparison)
    assert {key: verdict.outcome for key, verdict in found.items() if verdict} == {
        ("full data, 7 of 10 epochs", None): "worse",
        ("RandomPruning", 0.3): "no worse",
        ("OrderDP", 0.3): "worse",
        ("InfoBatch", 0.3): "no worse",
    }
    counts = {row.label: len(row.values) for row in comparison.result().rows}
    assert counts["OrderDP"] < counts["InfoBatch"] <= counts["full data"]  # who is decided is not run again
    assert set(counts.values()) <= {3, 5, 10, 20}


def test_adding_seeds_ends_at_the_most_and_where_runs_fail(tmp_path):
    noisy = Made({}, noise=0.1, fails=("OrderDP",))
    comparison = make(tmp_path, methods=METHODS[:2], runner=noisy, until_decided=True, max_seeds=6, control=False)
    comparison.run(1)
    rows = {row.label: row for row in comparison.result().rows}
    assert {label: len(row.values) for label, row in rows.items()} == {
        "full data": 5,
        "RandomPruning": 5,
        "OrderDP": 0,
    }
    assert rows["OrderDP"].num_failed == 1


def test_a_method_may_be_better_than_full_data_and_worse_than_fewer_epochs(tmp_path):
    comparison = make(tmp_path, {"OrderDP": -0.1, "full data, 7 of 10 epochs": -0.2}, methods=["OrderDP"])
    comparison.run(5)
    result = comparison.result()
    assert [verdict and verdict.outcome for verdict in result.verdicts] == [None, "no worse", "no worse"]
    assert [verdict and verdict.outcome for verdict in result.controls] == [None, None, "worse"]
    assert ": worse |" in result.table


def test_a_loss_is_better_when_lower(tmp_path):
    comparison = make(tmp_path, {"OrderDP": 0.3}, methods=["OrderDP"], metric="val_loss", margin=0.01, control=False)
    comparison.run(3)
    verdict = verdicts(comparison)["OrderDP", 0.3]
    assert verdict.outcome == "worse"
    assert verdict.difference == pytest.approx(-0.3, abs=0.01)
    assert "(lower is better)" in comparison.result().notes[0]
    other = make(tmp_path, methods=["OrderDP"], metric="val_loss", lower=False, control=False)
    assert verdicts(other)["OrderDP", 0.3].difference == pytest.approx(0.3, abs=0.01)


def test_default_metric_is_an_accuracy_of_the_trainings_own(tmp_path):
    comparison = make(tmp_path)
    assert comparison.metric == "val_acc"  # not prune/accepted
    comparison.metric = None
    with pytest.raises(RefusedError, match="none is named, and none of them is an accuracy by its name"):
        comparison.check_metric({"metrics": {"prune/accepted": 1.0, "val_loss": 1.0}})


def test_forecast_knows_the_time(tmp_path):
    comparison = make(tmp_path, methods=["RandomPruning"], ratios=(0.5,))
    said = comparison.forecast(2)
    assert said.startswith("6 runs, of which 0 are there; the others take about 80 s.")  # (10 + 5 + 5) epochs of 2 s
    comparison.run(1)
    assert comparison.forecast(2).startswith("6 runs, of which 3 are there; the others take about 40 s.")


def test_the_bar_says_which_run_which_epoch_and_how_long(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("lightning_prune.compare.progress.time.monotonic", lambda: clock[0])
    comparison = make(tmp_path)
    specs = [comparison.spec(cell, 0) for cell in comparison._controls()]
    with Bar(2, 1) as bar:
        bar.expect(2, specs)
        clock[0] = 1.0
        bar.tick(specs[:1])
        assert bar.remaining(specs[:1]) == "time left not known yet"
        folder = Path(specs[0]["folder"])
        folder.mkdir(parents=True)
        (folder / "epoch").write_text("5")
        clock[0] = 6.0
        bar.tick(specs[:1])
    said = re.sub(r"\x1b\[A", "", capsys.readouterr().err)
    assert "full-data-seed-0 epoch 5/10; about 12 s left" in said  # 5 epochs took 5 s; 5 and 7 are left


@pytest.mark.parametrize(("ratio", "epochs"), [(0.3, 7), (0.5, 5), (0.99, 1), (0.01, None)])
def test_control_takes_as_many_steps(ratio, epochs):
    assert control_epochs(10, ratio) == epochs


def epoch_schedule(module, optimizer):
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)}


def every_other(module, optimizer):
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch", "frequency": 2}}


class Stepping(Model):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()


def last_rate(model, epochs, *callbacks):
    trainer = make_trainer(*callbacks, max_epochs=epochs)
    trainer.fit(model, make_loader())
    return trainer.optimizers[0].param_groups[0]["lr"], trainer.global_step


@pytest.mark.parametrize("schedule", [one_cycle, epoch_schedule, every_other])
@pytest.mark.parametrize("epochs", [2, 4, 5])
def test_schedules_of_the_control_come_to_their_end(schedule, epochs):
    """Whether they are built from the length of the run, or from a number in the configuration."""
    rate, steps = last_rate(Model(schedule=schedule), 6)
    short, fewer = last_rate(Model(schedule=schedule), 6, FewerEpochs(epochs))
    assert fewer * 6 == steps * epochs
    assert short == pytest.approx(rate, rel=1e-6, abs=1e-12)


def test_a_module_that_steps_its_schedules_is_told_the_shorter_run():
    rate, _ = last_rate(Stepping(schedule=one_cycle), 3)
    assert last_rate(Stepping(schedule=one_cycle), 6, FewerEpochs(3))[0] == rate


def test_labels_of_ours_are_not_for_methods():
    from lightning_prune.compare.methods import of_entries

    for label in ("full data", "full data, 3 of 4 epochs", "pilot of x", "a/b"):
        with pytest.raises(RefusedError, match="Expected labels that can name files"):
            of_entries({label: {"class_path": "RePB"}}, "it")
    assert of_entries({"a": {"class_path": "RePB"}}, "it") == [Method("a", "lightning_prune.RePB")]
