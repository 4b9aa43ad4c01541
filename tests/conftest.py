"""Settings of every test."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # two workers on few cores: OpenMP's barriers would cost more than the arithmetic


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch):
    """A seed that another test's `seed_everything` left in the environment is not this test's."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
