"""litdata: its stream as it is, and by index."""

from __future__ import annotations

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from lightning_prune import InfoBatch
from lightning_prune.data import PrunedStream
from tests.helpers import Keep, make_dataset, make_trainer
from tests.packages.common import IGNORED, PackageModel, check, fit

litdata = pytest.importorskip("litdata")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


class ByName(PackageModel):
    def losses(self, batch):
        return super().losses((batch["x"], batch["y"], batch["id"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from litdata.streaming.writer import BinaryWriter

    folder = tmp_path_factory.mktemp("chunks")
    writer = BinaryWriter(str(folder), chunk_size=10)
    x, y, _ = make_dataset().tensors
    for i in range(40):
        writer[i] = {"x": x[i], "y": int(y[i]), "id": i}
    writer.done()
    writer.merge()
    return folder


def stream(folder):
    return litdata.StreamingDataset(str(folder), shuffle=True)


def test_as_a_stream(folder):
    model = ByName(by_ids=True)
    trainer = fit(model, litdata.StreamingDataLoader(stream(folder), batch_size=4), Keep(0.5, 0.3), num_samples=40)
    check(trainer, model, 40, dropped=False)


def test_filtered(folder):
    model = ByName(by_ids=True)
    trainer = fit(model, DataLoader(PrunedStream(stream(folder), key="id"), 4), Keep(0.5, 0.3), num_samples=40)
    check(trainer, model, 40)


class MapStyle(Dataset):
    """What the message says to write."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return self.dataset[index]

    def __len__(self):
        return len(self.dataset)


def test_by_index(folder):
    model = ByName()
    with pytest.raises(MisconfigurationException, match="derive `class MapStyle"):
        make_trainer(InfoBatch()).fit(model, litdata.StreamingDataLoader(stream(folder), batch_size=4))
    loader = DataLoader(MapStyle(stream(folder)), 4, shuffle=True)
    check(fit(model, loader, InfoBatch(0.5)), model, 40)
