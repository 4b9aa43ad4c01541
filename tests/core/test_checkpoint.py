"""Checkpoints of released state versions resume: what the code of version 2 wrote, today's code goes on with.

Version 1 is in ``tests/test_resume.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_prune import ScoreRegistry
from lightning_prune.core.checkpoint import STATE_VERSION, unpack
from lightning_prune.core.checks import StateMismatchError
from tests.core.exact_run import fit

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLACES = {"end": (2, 0), "middle": (2, 3), "last-batch": (3, 0)}
"""The next epoch and batch to train after each checkpoint."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(callbacks used to create the checkpoint|newer than your current Lightning)"
)


@pytest.fixture(scope="module")
def whole():
    trainer, model = fit()
    return ScoreRegistry.of(trainer), model


@pytest.mark.parametrize("place", PLACES)
def test_version_2_resumes_as_if_never_interrupted(place, whole):
    path = FIXTURES / f"state-2-{place}.ckpt"
    registry, model = whole
    trainer, resumed = fit(ckpt_path=path)
    epoch, batch = PLACES[place]
    left = [seen for seen in model.seen if seen[0] >= epoch][batch:]
    assert resumed.seen == left
    assert torch.equal(resumed.weight, model.weight)
    again = ScoreRegistry.of(trainer)
    for name, values in registry.to_dict().items():
        assert torch.equal(values, again.to_dict()[name]), name
    assert torch.equal(again.selection.indices, registry.selection.indices)
    assert (again.trained_steps, again.full_steps) == (registry.trained_steps, registry.full_steps)
    assert again.epoch == registry.epoch == 5


@pytest.mark.parametrize("place", PLACES)
def test_the_fixtures_are_of_version_2(place):
    checkpoint = torch.load(FIXTURES / f"state-2-{place}.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["ScoreRegistry"]
    assert state["version"] == 2 <= STATE_VERSION
    assert state["open"] == (place != "end")
    assert checkpoint["global_step"] == {"end": 17, "middle": 20, "last-batch": 24}[place]


def test_a_newer_version_is_refused_by_name():
    state = {"version": STATE_VERSION + 1, "open": False}
    match = f"version <= {STATE_VERSION}, but the checkpoint has {STATE_VERSION + 1}.*newer lightning-prune: upgrade"
    with pytest.raises(StateMismatchError, match=match):
        unpack(state, ScoreRegistry(), 40, torch.device("cpu"))
