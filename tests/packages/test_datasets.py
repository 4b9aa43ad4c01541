"""Hugging Face datasets: in streaming mode, and by index."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from lightning_prune import InfoBatch
from lightning_prune.data import PrunedStream
from tests.helpers import Keep, make_dataset
from tests.packages.common import IGNORED, PackageModel, check, fit

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


@pytest.fixture(scope="module")
def table():
    x, y, index = make_dataset().tensors
    return datasets.Dataset.from_dict({"x": x.tolist(), "y": y.tolist(), "id": index.tolist()}).with_format("torch")


class ByName(PackageModel):
    def losses(self, batch):
        return super().losses((batch["x"], batch["y"], batch["id"]))


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming(table, workers):
    stream = table.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=10)
    model, loader = ByName(by_ids=True), DataLoader(PrunedStream(stream, key="id"), 4, num_workers=workers)
    check(fit(model, loader, Keep(0.5, 0.3, 0.8), num_samples=40), model, 40)


def test_streaming_with_weights_of_0(table):
    model = ByName(by_ids=True)
    trainer = fit(model, DataLoader(table.to_iterable_dataset(), 4), Keep(0.5, 0.3, 0.8), num_samples=40)
    check(trainer, model, 40, dropped=False)


def test_by_index(table):
    model = ByName()
    check(fit(model, DataLoader(table, 4, shuffle=True), InfoBatch(0.5)), model, 40)
