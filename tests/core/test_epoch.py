"""The record of an epoch, without a fit."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.core.epoch import EpochRecord


@pytest.mark.parametrize("num", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("step_size", [1, 3, 6, 9])
def test_steps_are_positions_by_step_size(num, step_size):
    expected = [position // step_size for position in range(num)]
    losses = torch.zeros(num)
    assert EpochRecord(torch.arange(num), losses, None, step_size, {}).steps.tolist() == expected
    recorded = torch.arange(num) % 2 == 0  # a collate function left out every other sample
    record = EpochRecord(torch.arange(num)[recorded], losses[recorded], recorded, step_size, {})
    assert record.steps.tolist() == expected[::2]
    assert record.steps.dtype == torch.int64
