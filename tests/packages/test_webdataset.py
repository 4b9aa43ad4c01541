"""webdataset: shards of tar files, whose samples are dropped before they are decoded."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_prune import InfoBatch
from lightning_prune.data import PrunedStream
from tests.helpers import Keep, make_dataset
from tests.packages.common import IGNORED, PackageModel, check, fit

wds = pytest.importorskip("webdataset")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as out:
            for i in range(20 * shard, 20 * shard + 20):
                x, y, _ = make_dataset()[i]
                out.write({"__key__": f"{i:06d}", "x.npy": x.numpy(), "y.cls": int(y)})
    return [str(folder / f"{shard}.tar") for shard in range(2)]


class Decode:
    """Decodes a sample, and counts how many there were."""

    def __init__(self):
        self.decoded = 0
        self.decoder = wds.autodecode.Decoder([wds.autodecode.basichandlers])

    def __call__(self, sample):
        self.decoded += 1
        sample = self.decoder(sample)
        return torch.from_numpy(sample["x.npy"]), sample["y.cls"], int(sample["__key__"])


def shards(urls):
    return wds.WebDataset(urls, shardshuffle=2, seed=0, empty_check=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_not_selected_is_not_decoded(urls, workers):
    decode, model = Decode(), PackageModel(by_ids=True)
    stream = PrunedStream(shards(urls), key="__key__", transform=decode)
    trainer = fit(model, DataLoader(stream, 4, num_workers=workers), Keep(0.5, 0.3, 0.7), num_samples=40)
    check(trainer, model, 40)
    assert workers or decode.decoded <= 60 + 4  # and one batch that was read before anything was selected


def test_a_pipeline_of_its_own(urls):
    """`.map(decode).batched(4)` in webdataset's own loader, which is no `DataLoader`, with a weight of 0."""
    model = PackageModel(by_ids=True)
    loader = wds.WebLoader(shards(urls).map(Decode()).batched(4), batch_size=None)
    trainer = fit(model, loader, InfoBatch(0.5), num_samples=40)
    assert len(model.selected[1]) < 40
    assert [len(model.epoch_ids(epoch)) for epoch in range(3)] == [40] * 3
    assert trainer.callback_metrics["prune/saved_fraction"] == 0


def test_a_pipeline_around_the_filter(urls):
    model = PackageModel(by_ids=True)
    stream = PrunedStream(shards(urls), key="__key__")
    pipeline = wds.DataPipeline(stream, wds.shuffle(10), wds.map(Decode()), wds.batched(4))
    trainer = fit(model, DataLoader(pipeline, batch_size=None), Keep(0.5, 0.3), num_samples=40)
    check(trainer, model, 40)
