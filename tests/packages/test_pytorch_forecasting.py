"""pytorch-forecasting: its batch sampler of synchronized times, which has a sampler that it does not read."""

from __future__ import annotations

import pytest
import torch

from lightning_prune import InfoBatch
from tests.helpers import registry_of
from tests.packages.common import IGNORED, PackageModel, fit

forecasting = pytest.importorskip("pytorch_forecasting")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


@pytest.fixture(scope="module")
def windows():
    pandas = pytest.importorskip("pandas")
    generator = torch.Generator().manual_seed(0)
    frame = pandas.DataFrame(
        {
            "time": [t for _ in range(4) for t in range(14)],
            "series": [str(s) for s in range(4) for _ in range(14)],
            "value": torch.randn(56, generator=generator).tolist(),
        }
    )
    return forecasting.TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=3,
        min_encoder_length=3,
        max_prediction_length=2,
        min_prediction_length=2,
        time_varying_unknown_reals=["value"],
        target_normalizer=None,
    )


class Forecaster(PackageModel):
    """Its losses are known without it, so that each can be told from the sample."""

    def losses(self, batch):
        _, (y, _) = batch
        losses = y.float().square().mean(1)
        self.seen.append((self.current_epoch, losses.tolist()))
        return losses + 0 * self.layer.weight.sum()


@pytest.mark.parametrize("sampler", ["synchronized", None])
def test_batches(windows, sampler):
    model, own = Forecaster(), [float(y[0].float().square().mean()) for _, y in windows]
    loader = windows.to_dataloader(train=True, batch_size=4, batch_sampler=sampler, num_workers=0)
    full = sum(len(batch[1][0]) for batch in loader)
    trainer = fit(model, loader, InfoBatch(0.5))
    registry, trained = registry_of(trainer), 0
    for epoch, selected in enumerate(model.selected):
        values = model.epoch_ids(epoch)
        allowed = torch.tensor([own[i] for i in selected])
        assert all(float((allowed - value).abs().min()) < 1e-5 for value in values)
        trained += len(values)
    assert trained < 3 * full
    assert registry.saved_fraction == pytest.approx(1 - trained / (3 * full))
    known = ~registry.losses.isnan()
    assert torch.allclose(registry.losses[known], torch.tensor(own)[known], rtol=1e-4)
    assert int(known.sum()) > len(windows) * 0.8
