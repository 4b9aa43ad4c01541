"""torch_geometric: a loader of graphs, whose batches are no tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune import InfoBatch, SelectiveBackprop
from tests.helpers import make_dataset
from tests.packages.common import IGNORED, PackageModel, check, fit

geometric = pytest.importorskip("torch_geometric")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


class GraphModel(PackageModel):
    def losses(self, batch):
        mean = torch.zeros(batch.num_graphs, 8).index_add_(0, batch.batch, batch.x)
        logits = self.layer(mean)
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        self.note(batch.id, losses)
        return losses

    def take_samples(self, batch, positions):
        return geometric.data.Batch.from_data_list([batch[i] for i in positions.tolist()])


def graphs():
    from torch_geometric.data import Data

    edges = torch.tensor([[0, 1], [1, 0]])
    return [
        Data(x=torch.stack([x, -x / 2]), edge_index=edges, y=y[None], id=i)
        for i, (x, y, _) in enumerate(make_dataset())
    ]


def loader():
    from torch_geometric.loader import DataLoader

    return DataLoader(graphs(), batch_size=4, shuffle=True)


def test_graphs():
    model = GraphModel()
    check(fit(model, loader(), InfoBatch(0.5)), model, 40)


def test_picks_within_batches_of_graphs():
    model = GraphModel()
    trainer = fit(model, loader(), SelectiveBackprop(0.5, start=0.0, end=1.0, interrupt=0))
    assert all(len(ids) == 2 for _, ids in model.seen)
    assert trainer.callback_metrics["prune/saved_fraction"] == 0.5
