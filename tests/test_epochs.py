"""Epochs of different length behave as a user of Lightning expects: validation, metrics, steps, bars."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar

from tests.helpers import VARIABLE, Keep, Model, make_loader, make_trainer, registry_of

LENGTHS = [10, 5, 10, 8]


def fit(model=None, callbacks=(), shares=VARIABLE, loader=None, **kwargs):
    model = model or Model()
    trainer = make_trainer(Keep(*shares), *callbacks, **kwargs)
    trainer.fit(model, loader or make_loader(), make_loader(8))
    return trainer, model


def test_epochs_have_their_own_length():
    trainer, model = fit()
    assert model.epoch_batches(4) == LENGTHS
    assert [len(model.epoch_ids(epoch)) for epoch in range(4)] == [40, 20, 40, 30]
    assert trainer.num_training_batches == 8


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, [(0, 10), (1, 5), (2, 10), (3, 8)]),
        ({"val_check_interval": 0.5}, [(0, 5), (0, 10), (1, 2), (1, 4), (2, 5), (2, 10), (3, 4), (3, 8)]),
        ({"val_check_interval": 6}, [(0, 6), (1, 5), (2, 6), (3, 6)]),
        ({"check_val_every_n_epoch": 2}, [(1, 5), (3, 8)]),
        ({"val_check_interval": 6, "check_val_every_n_epoch": None}, [(0, 6), (1, 2), (2, 3), (2, 9), (3, 5)]),
    ],
    ids=["every_epoch", "half_epochs", "every_6_batches", "every_2_epochs", "total_batches"],
)
def test_validation_runs_when_it_is_due(kwargs, expected):
    _, model = fit(**kwargs)
    assert model.validated == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shares", [(0.5, 1.0, 1.0, 0.75), (1.0, 0.5)], ids=["short_first", "full_first"])
def test_first_epoch_may_be_short(workers, shares):
    loader = make_loader(num_workers=workers, persistent_workers=workers > 0)
    _, model = fit(shares=shares, loader=loader, accumulate_grad_batches=3)
    lengths = [round(10 * shares[epoch % len(shares)] + 0.01) for epoch in range(4)]
    assert model.epoch_batches(4) == lengths
    assert model.validated == list(enumerate(lengths))
    assert len(model.lrs) == sum(-(-length // 3) for length in lengths)


def test_early_stopping_sees_fresh_metrics():
    class Watch(EarlyStopping):
        values: list[float] = []

        def on_validation_end(self, trainer, pl_module):
            self.values.append(float(trainer.callback_metrics["val_loss"]))
            super().on_validation_end(trainer, pl_module)

    stopping = Watch("val_loss", patience=4)
    trainer, _ = fit(callbacks=[stopping])
    assert trainer.current_epoch == 4
    assert len(set(stopping.values)) == 4


def test_model_checkpoint_sees_fresh_metrics(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}-{val_loss:.6f}", monitor="val_loss", save_top_k=-1)
    fit(callbacks=[checkpoint], enable_checkpointing=True)
    values = [float(value) for value in checkpoint.best_k_models.values()]
    assert len(values) == len(set(values)) == 4


def test_accumulation_steps_at_each_epochs_end():
    _, model = fit(accumulate_grad_batches=3)
    assert len(model.lrs) == 4 + 2 + 4 + 3


@pytest.mark.parametrize(
    ("limit", "expected"), [(6, [6, 5, 6, 6]), (0.5, [5, 2, 5, 4]), (1, [1, 1, 1, 1])], ids=["int", "float", "one"]
)
def test_limit_train_batches(limit, expected):
    _, model = fit(limit_train_batches=limit)
    assert model.epoch_batches(4) == expected
    assert [batches for _, batches in model.validated] == expected


def test_max_steps():
    trainer, model = fit(max_steps=17, max_epochs=-1)
    assert trainer.global_step == len(model.lrs) == 17
    assert model.validated[:2] == [(0, 10), (1, 5)]


def test_fast_dev_run():
    _, model = fit(fast_dev_run=True)
    assert model.epoch_batches(1) == [1]


def test_reloaded_loaders():
    _, model = fit(reload_dataloaders_every_n_epochs=1)
    assert model.epoch_batches(4) == LENGTHS


def test_progress_bar_totals():
    class Bar(TQDMProgressBar):
        totals: list[int] = []

        def on_train_epoch_start(self, trainer, *args):
            super().on_train_epoch_start(trainer, *args)
            self.totals.append(self.train_progress_bar.total)

    bar = Bar()
    trainer = make_trainer(bar, Keep(*VARIABLE), enable_progress_bar=True)  # listed before the method, too
    trainer.fit(Model(), make_loader())
    assert bar.totals == LENGTHS


def test_metrics_are_logged_once_an_epoch(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer, _ = fit(logger=logger)
    rows = [row for row in logger.experiment.metrics if "prune/kept_fraction" in row]
    rows = rows or [m for m in _csv(logger) if m.get("prune/kept_fraction")]
    assert [float(row["prune/kept_fraction"]) for row in rows] == list(VARIABLE)
    saved = [0.0, 20 / 80, 20 / 120, 30 / 160]
    assert [float(row["prune/saved_fraction"]) for row in rows] == pytest.approx(saved)
    assert "prune/kept_fraction" in trainer.progress_bar_metrics
    assert registry_of(trainer).saved_fraction == pytest.approx(30 / 160)


def _csv(logger):
    import csv
    from pathlib import Path

    with Path(logger.log_dir, "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_selection_smaller_than_a_batch_does_not_end_the_fit():
    _, model = fit(shares=(1.0, 0.05), loader=make_loader(drop_last=True))
    assert model.epoch_batches(4) == [10, 1, 10, 1]
    assert model.validated == [(0, 10), (1, 1), (2, 10), (3, 1)]


def test_a_selection_of_one_sample():
    trainer, model = make_trainer(Keep(1.0, 1 / 40)), Model()
    trainer.fit(model, make_loader(), make_loader(8))
    assert model.epoch_batches(4) == [10, 1, 10, 1]
    assert [epoch for epoch, _ in model.validated] == [0, 1, 2, 3]


def test_log_false_logs_nothing():
    trainer = make_trainer(Keep(*VARIABLE, log=False))
    trainer.fit(Model(), make_loader())
    assert not [name for name in trainer.callback_metrics if name.startswith("prune/")]


def test_warmup_epochs_are_full():
    trainer = make_trainer(Keep(0.5, warmup_epochs=2))
    model = Model()
    trainer.fit(model, make_loader())
    assert model.epoch_batches(4) == [10, 10, 5, 5]
