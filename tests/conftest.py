"""Settings of every test."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

collect_ignore = ["emulated_device.py"]  # doctests are looked for in every module, and this one registers a backend

torch.set_num_threads(1)  # two workers on few cores: OpenMP's barriers would cost more than the arithmetic

# The same examples in every run: what is green here is green elsewhere. No deadline: machines are busy.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch):
    """A seed that another test's `seed_everything` left in the environment is not this test's."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
