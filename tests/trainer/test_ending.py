"""What a run says: its arguments to the loggers, what it saved at its end, and that it does nothing where it does."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import yaml
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_prune import (
    IES,
    AlignPrune,
    BatchLossScore,
    InfoBatch,
    LabelIssues,
    OrderDP,
    PruningReport,
    RandomPruning,
    ScoreRegistry,
    SeTa,
    WeightedLossMixin,
)
from lightning_prune.cli import main
from lightning_prune.testing.task import TaskModel
from lightning_prune.trainer.clock import Stopwatch
from tests.helpers import Keep, Model, PlainModel, make_dataset, make_loader, make_trainer, registry_of

IDLE = "will leave nothing out in the"


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    return lambda: [r.message for r in caplog.records if r.message.startswith(("Saved", "See", "For a page", "Keep"))]


def test_three_lines(said, tmp_path):
    report = PruningReport(tmp_path / "report.md")
    registry = ScoreRegistry(save_to=tmp_path / "samples.npz")
    labels = LabelIssues(save_to=tmp_path / "labels.csv")
    trainer = make_trainer(Keep(1.0, 0.5), report, labels, registry)
    trainer.fit(Model(), make_loader())
    method, saved, see = said()
    assert method == "Keep(1.0, 0.5)"
    assert re.fullmatch(r"Saved 25\.0 % of the sample-steps \(40 of 160\), about \S+ s of \S+ s of training\.", saved)
    assert see == (
        f"See report '{tmp_path}/report.md', its record '{tmp_path}/report.npz', table of labels "
        f"'{tmp_path}/labels.csv', of which about {labels.num_issues} are wrong, "
        f"per-sample table '{tmp_path}/samples.npz'."
    )
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + 40
    with np.load(tmp_path / "samples.npz") as table:
        assert sorted(table.files) == ["counts", "indices", "losses"]
        assert table["counts"].sum() == 120


def test_without_a_report_it_says_how_to_have_one(said):
    make_trainer(Keep(0.5)).fit(Model(), make_loader())
    assert "add `PruningReport()`" in said()[-1]
    assert "ScoreRegistry(save_to=" in said()[-1]


def test_runs_of_which_there_is_nothing_to_say(said):
    make_trainer(ScoreRegistry()).fit(Model(), make_loader())
    make_trainer(Keep(0.5), fast_dev_run=True).fit(Model(), make_loader())
    assert said() == []


def test_the_table_is_of_the_finished_run(tmp_path):
    """Also from yaml; in Parquet by its suffix; samples that were never trained are in it."""
    callbacks = [
        {"class_path": "ScoreRegistry", "init_args": {"save_to": str(tmp_path / "deep" / "samples.parquet")}},
        {"class_path": "RandomPruning", "init_args": {"prune_ratio": 0.9, "seed": 1}},
    ]
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    config = {
        "seed_everything": False,
        "model": {"class_path": "tests.helpers.ModelWithData"},
        "trainer": {**trainer, "callbacks": callbacks, "logger": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-prune"])
        main(["fit", "--config", str(tmp_path / "config.yaml")])
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "deep" / "samples.parquet").to_pydict()
    assert sum(table["counts"]) == 8
    assert table["counts"].count(0) >= 32


def test_a_table_that_cannot_be_written_is_known_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    model = Model()
    with pytest.raises(OSError, match=r"Expected to be able to write '.*samples.npz'.*another path for the per-sample"):
        make_trainer(ScoreRegistry(save_to=tmp_path / "file" / "samples")).fit(model, make_loader())
    assert model.seen == []
    with pytest.raises(ValueError, match=r"Expected a path that ends in `.npz` or `.parquet`, but got 'samples.csv'"):
        ScoreRegistry(save_to="samples.csv")


def test_savings_are_in_the_progress_bar_and_in_the_log(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(Keep(1.0, 0.5), TQDMProgressBar(), logger=logger, enable_progress_bar=True)
    trainer.fit(Model(), make_loader())
    shown = trainer.progress_bar_metrics
    assert shown["prune/saved_fraction"] == 0.25
    assert shown["prune/kept_fraction"] == 0.5
    assert 0 < shown["prune/saved_seconds"] < 60
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "prune/saved_fraction" in text
    assert "saved_seconds" not in text  # not the same in each run


def test_arguments_are_logged_as_hyperparameters(tmp_path):
    class Tuned(Model):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

    logger = CSVLogger(tmp_path)
    base = InfoBatch(0.3, warmup_epochs=1)
    make_trainer(AlignPrune(base, window=2), logger=logger).fit(Tuned(), make_loader())
    logged = yaml.safe_load((tmp_path / "lightning_logs" / "version_0" / "hparams.yaml").read_text())
    assert logged["width"] == 3
    assert logged["prune/method"] == "AlignPrune"
    assert logged["prune/window"] == 2
    assert logged["prune/base"].startswith("InfoBatch(prune_ratio=0.3")
    quiet = CSVLogger(tmp_path, version=1)
    make_trainer(RandomPruning(log=False), logger=quiet).fit(Model(), make_loader())
    assert not any(name.startswith("prune/") for name in quiet.experiment.hparams)


@pytest.mark.filterwarnings(f"error:.*{IDLE}")
@pytest.mark.parametrize(
    ("method", "epochs"),
    [
        (lambda: InfoBatch(), 2),
        (lambda: InfoBatch(warmup_epochs=3, anneal_ratio=1.0), 3),
        (lambda: BatchLossScore(InfoBatch()), 2),
        (lambda: IES(), 6),
        (lambda: IES(moving_average=1), 4),
        (lambda: RandomPruning(warmup_epochs=2), 2),
        (lambda: OrderDP(warmup_epochs=2), 2),
    ],
)
def test_methods_that_will_prune_nothing_say_so(method, epochs):
    """In one epoch more they do not, and may leave something out."""
    with pytest.warns(UserWarning, match=rf"\w+\(.*\) {IDLE} {epochs} epochs of this run"):
        make_trainer(method(), max_epochs=epochs).fit(Model(), make_loader())
    more = 3 if "anneal_ratio=0.875" in repr(method()) else epochs + 1
    trainer = make_trainer(method(), max_epochs=more)
    trainer.fit(Model(), make_loader())
    assert method().prunable(more) > 0


@pytest.mark.parametrize("method", [lambda: InfoBatch(), lambda: SeTa(), lambda: OrderDP(), lambda: RandomPruning()])
def test_where_they_may_something_is_left_out(method):
    """The share of the epochs that a method says it may prune is that of the epochs it prunes."""
    model = Model()
    make_trainer(method(), max_epochs=8).fit(model, make_loader())
    pruned = sum(len(model.epoch_ids(epoch)) < 40 for epoch in range(8))
    assert pruned == round(8 * method().prunable(8))


class Other(WeightedLossMixin, TaskModel):
    """Trains on what a function makes of the losses and the weighted loss."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        return self.make(losses, self.weighted_loss(losses))


@pytest.mark.parametrize(
    ("make", "warns"),
    [
        (lambda losses, loss: loss, False),
        (lambda losses, loss: loss + 0.1 * losses.square().mean(), False),
        (lambda losses, loss: {"loss": 2 * loss}, False),
        (lambda losses, loss: losses.mean(), True),
        (lambda losses, loss: {"loss": losses.mean()}, True),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_another_loss_is_noticed(make, warns, accumulate, recwarn):
    make_trainer(InfoBatch(seed=1), accumulate_grad_batches=accumulate).fit(Other(make), make_loader())
    found = [w for w in recwarn if "but trains on another loss" in str(w.message)]
    assert len(found) == warns


def test_another_loss_is_none_of_ours_where_nothing_is_weighed(recwarn):
    for method in ([RandomPruning(0.5)], [ScoreRegistry()]):
        make_trainer(*method).fit(Other(lambda losses, loss: losses.mean()), make_loader())
    assert not [w for w in recwarn if "another loss" in str(w.message)]


def test_one_loss_of_several_is_enough(recwarn):
    """As of a GAN: the first backward is another network's."""

    class Two(Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.weighted_loss(self.losses(batch))
            self.manual_backward(self.layer.weight.square().sum())
            self.manual_backward(loss)
            optimizer.step()

    make_trainer(InfoBatch(seed=1)).fit(Two(), make_loader())
    assert not [w for w in recwarn if "another loss" in str(w.message)]


def test_the_mixin_behind_the_module():
    class Behind(TaskModel, WeightedLossMixin):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(self.losses(batch))

    message = r"`Behind` has `WeightedLossMixin` behind `LightningModule`.*Swap the order: `class Behind\(WeightedLoss"
    with pytest.warns(UserWarning, match=message):
        make_trainer(InfoBatch()).fit(Behind(), make_loader())


def test_the_clock_leaves_pauses_out(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = Stopwatch()
    clock.run()
    now = 2.0
    clock.pause()
    now = 5.0
    assert clock.seconds == 2.0
    clock.run()
    clock.run()
    now = 6.0
    assert clock.seconds == 3.0
    clock.lap()
    now = 9.0
    assert (clock.total, clock.seconds) == (3.0, 0.0)


def test_validation_is_not_counted(monkeypatch):
    class Slow(Model):
        def validation_step(self, batch, batch_idx):
            nonlocal now
            now += 1000.0

        def training_step(self, batch, batch_idx):
            nonlocal now
            now += 1.0
            return super().training_step(batch, batch_idx)

    now = 0.0
    monkeypatch.setattr("lightning_prune.trainer.clock.time.perf_counter", lambda: now)
    trainer = make_trainer(Keep(1.0, 0.5), val_check_interval=0.5)
    trainer.fit(Slow(), make_loader(), DataLoader(make_dataset(8), 8))
    registry = registry_of(trainer)
    assert registry.clock.total == 30.0
    assert registry.seconds_saved == 10.0


def test_a_plain_module_is_pruned_without_a_word(recwarn):
    make_trainer(RandomPruning(0.5)).fit(PlainModel(), make_loader())
    assert not [w for w in recwarn if "another loss" in str(w.message) or IDLE in str(w.message)]
