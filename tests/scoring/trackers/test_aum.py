from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import AUM


def reference_margins(values, targets):
    margins = []
    for row, y in zip(values.tolist(), targets.tolist(), strict=True):
        margins.append(row[y] - max(v for c, v in enumerate(row) if c != y))
    return torch.tensor(margins)


def test_golden(golden, feed):
    torch.testing.assert_close(feed(AUM(60)).compute(), golden["aum_sum"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_reference(golden, feed, space):
    values = golden["logits"].double()
    values = values.softmax(2) if space == "prob" else values
    expected = sum(reference_margins(values[t], golden["targets"]) for t in range(14))
    torch.testing.assert_close(feed(AUM(60, space)).compute(), expected.float(), rtol=1e-5, atol=5e-6)


def test_the_end_to_keep_is_said():
    assert AUM(3).keep == "low"
    assert AUM(3, keep="high").keep == "high"


def test_bad_arguments():
    with pytest.raises(ValueError, match="`space` to be one of"):
        AUM(3, space="log")
    with pytest.raises(ValueError, match="`keep` to be one of"):
        AUM(3, keep="middle")
