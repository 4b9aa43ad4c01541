"""Runs that several tests report on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import InfoBatch, PruningReport, RandomPruning
from lightning_prune.report import RunRecord
from lightning_prune.report.images import Looks
from tests.helpers import Model, make_trainer

NUM = 40


def pictured_set(num_samples=NUM):
    """Samples with a picture each, whose grey tells the id, and two classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    data = TensorDataset(x, y, torch.arange(num_samples))
    data.pictures = np.arange(num_samples, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 6), np.uint8)
    data.texts = [f"<b>text</b> {i}" for i in range(num_samples)]
    data.classes = ["low", "</script><b>high"]
    return data


def fit(*callbacks, data=None, model=None, **kwargs):
    torch.manual_seed(0)
    model = Model() if model is None else model
    trainer = make_trainer(*callbacks, **kwargs)
    loader = DataLoader(pictured_set() if data is None else data, 4, shuffle=True)
    trainer.fit(model, loader, DataLoader(pictured_set(8), 8))
    return trainer, model


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of three runs on the same data: InfoBatch, random, and full data; and where the first one's report is."""
    root = tmp_path_factory.mktemp("runs")
    methods = {"infobatch": [InfoBatch(0.5, seed=1)], "random": [RandomPruning(0.5, seed=1)], "full": []}
    for name, method in methods.items():
        report = PruningReport(root / f"{name}.json", images="pictures")
        fit(*method, report, logger=CSVLogger(root, name=name, version=0), max_epochs=6)
    return {name: root / name / "version_0" for name in methods}


def made_record(num_samples=500, num_epochs=12, seed=0, classes=5, looks=True):
    """Return a record of a run that never was: losses fall, one in twenty stays high, class 4 is starved."""
    rng = np.random.default_rng(seed)
    given = rng.integers(0, classes, num_samples)
    hard = rng.random(num_samples) < 0.05
    rate = np.where(hard, 0.02, 0.2 + 0.6 * rng.random(num_samples))
    first = 1 + rng.random(num_samples)
    course = (
        first * np.exp(-rate * np.arange(num_epochs)[:, None]) * (0.8 + 0.4 * rng.random((num_epochs, num_samples)))
    )
    kept = rng.random((num_epochs, num_samples)) < np.where(given == 4, 0.2, 0.7)
    kept[0] = True
    course[~kept] = np.nan
    times = kept.sum(0)
    epochs = [
        {
            "epoch": e,
            "kept": float(kept[e].mean()),
            "saved": float(1 - kept[: e + 1].mean()),
            "trained": int(kept[e].sum()),
            "seconds": 2.0,
            "loss_mean": float(np.nanmean(course[e])),
            **{f"loss_p{p}": float(np.nanpercentile(course[e], p)) for p in (5, 25, 50, 75, 95)},
        }
        for e in range(num_epochs)
    ]
    last = num_epochs - 1 - kept[::-1].argmax(0)
    record = RunRecord(
        {
            "name": f"version_{seed}",
            "method": "InfoBatch",
            "description": "InfoBatch(prune_ratio=0.5)",
            "arguments": {"prune_ratio": 0.5, "seed": None},
            "num_samples": num_samples,
            "dataset": "MadeUp",
            "trained_steps": int(kept.sum()),
            "full_steps": num_samples * num_epochs,
            "epochs": epochs,
            "metric": "val_acc",
            "metric_curve": [[e, 0.9 * (1 - 0.8**e)] for e in range(num_epochs)],
            "metrics": {"val_acc": 0.85},
            "class_names": [f"class {c}" for c in range(classes)],
            "has_classes": True,
            "span": 1,
            "date": "2026-01-01T00:00:00+00:00",
        },
        {
            "mean": np.nanmean(course, 0).astype(np.float32),
            "spread": np.nanstd(course, 0).astype(np.float32),
            "times": times.astype(np.int16),
            "first": first.astype(np.float32),
            "last": course[last, np.arange(num_samples)].astype(np.float32),
            "last_epoch": last.astype(np.int16),
            "forgotten": rng.integers(0, 4, num_samples).astype(np.int16),
            "given": given,
        },
        course.astype(np.float16),
        class_kept=np.stack([np.bincount(given[row], minlength=classes) for row in kept]),
    )
    if looks:
        pictures = rng.integers(0, 255, (num_samples, 8, 8, 3), dtype=np.uint8)
        record.looks = Looks()
        record.looks.collect(lambda i: pictures[i], range(min(num_samples, 300)))
    return record
