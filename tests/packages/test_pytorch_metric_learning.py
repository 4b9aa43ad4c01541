"""pytorch-metric-learning: its sampler of m per class, and its losses per element."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from lightning_prune import InfoBatch
from tests.helpers import make_dataset, registry_of
from tests.packages.common import IGNORED, PackageModel, fit

pytest.importorskip("pytorch_metric_learning")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


class MetricModel(PackageModel):
    def __init__(self):
        from pytorch_metric_learning import losses, reducers

        super().__init__()
        self.loss = losses.NormalizedSoftmaxLoss(2, 2, reducer=reducers.DoNothingReducer())

    def losses(self, batch):
        x, y, index = batch
        losses = self.loss(self.layer(x), y)["loss"]["losses"]
        self.note(index, losses)
        return losses


def test_m_per_class():
    from pytorch_metric_learning.samplers import MPerClassSampler

    data = make_dataset()
    sampler = MPerClassSampler(data.tensors[1], m=2, batch_size=4, length_before_new_iter=40)
    model = MetricModel()
    trainer = fit(model, DataLoader(data, 4, sampler=sampler), InfoBatch(0.5), max_epochs=4)
    trained = 0
    for epoch, selected in enumerate(model.selected):
        assert set(model.epoch_ids(epoch)) <= selected
        trained += len(model.epoch_ids(epoch))
    assert trained < 160
    registry = registry_of(trainer)
    assert registry.saved_fraction == pytest.approx(1 - trained / 160)
    for i, loss in model.true_losses.items():
        assert float(registry.losses[i]) == pytest.approx(loss, rel=1e-5)
