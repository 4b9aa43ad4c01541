from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import Forgetting, select_top


def run(history, **kwargs):
    """Feed 0/1 histories (n, T) of right predictions."""
    history = torch.tensor(history)
    tracker = Forgetting(len(history), **kwargs)
    for right in history.T:
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        tracker.update(torch.arange(len(history)), logits=logits, targets=torch.zeros(len(history), dtype=torch.int64))
        tracker.end_epoch()
    return tracker.compute()


def test_golden(golden, feed):
    assert torch.equal(feed(Forgetting(60, "zero")).compute(), golden["forgetting_count"].float())
    expected = torch.where(golden["forgetting_never_learned"], torch.inf, golden["forgetting_count"])
    assert torch.equal(feed(Forgetting(60)).compute(), expected.float())


@pytest.mark.parametrize(
    ("history", "events"),
    [([1, 1, 1, 1], 0), ([0, 1, 0, 1], 1), ([1, 0, 1, 0], 2), ([1, 0, 0, 0], 1), ([0, 0, 0, 1], 0)],
)
def test_events(history, events):
    assert run([history]).tolist() == [events]


def test_never_learned():
    assert run([[0, 0, 0]]).tolist() == [float("inf")]
    assert run([[0, 0, 0]], never_learned="zero").tolist() == [0.0]


def test_ties_of_the_prediction_go_to_the_lower_class():
    tracker = Forgetting(2)
    tracker.update(torch.arange(2), logits=torch.zeros(2, 3), targets=torch.tensor([0, 1]))
    assert tracker.compute().tolist() == [0.0, float("inf")]


def test_infinite_scores_can_be_selected():
    assert select_top(run([[0, 0, 0], [1, 0, 1], [1, 1, 1]]), 2).tolist() == [0, 1]


def test_bad_arguments():
    with pytest.raises(ValueError, match="`never_learned` to be one of"):
        Forgetting(3, never_learned="first")
