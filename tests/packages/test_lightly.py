"""lightly: two views of each sample, whose losses are those of a batch after another."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_prune import InfoBatch
from tests.helpers import make_dataset
from tests.packages.common import IGNORED, PackageModel, check, fit

lightly = pytest.importorskip("lightly")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


class Views(Dataset):
    """Two noisy views, as lightly's transforms make them, and the index."""

    def __init__(self):
        self.samples = make_dataset()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        x, y, _ = self.samples[index]
        return [x + 0.01 * torch.randn(8), x + 0.01 * torch.randn(8)], y, index


class SimCLR(PackageModel):
    def __init__(self):
        from lightly.loss import NTXentLoss

        super().__init__()
        self.contrast = NTXentLoss()
        self.contrast.cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")

    def losses(self, batch):
        (first, second), _, index = batch
        losses = self.contrast(self.layer(first), self.layer(second)).view(2, len(index)).mean(0)
        self.note(index, losses)
        return losses


def test_simclr():
    model = SimCLR()
    check(fit(model, DataLoader(Views(), 4, shuffle=True), InfoBatch(0.5)), model, 40)
