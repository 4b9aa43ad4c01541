from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import DUAL
from tests.scoring.trackers.test_dynunc import target_probs


def reference_dual(probs, window):
    scores = []
    for q in probs.T:
        inside = [q[w : w + window] for w in range(len(q) - window + 1)]
        scores.append(sum(10 * x.std(correction=1) * (1 - x.mean()) for x in inside) / len(inside))
    return torch.stack(scores).float()


def test_golden(golden, feed):
    torch.testing.assert_close(feed(DUAL(60)).compute(), golden["dual_J10"], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("window", "num_epochs"), [(5, 30), (5, 9), (2, 2)])
def test_reference(golden, feed, window, num_epochs):
    probs = target_probs(golden)[:num_epochs]
    tracker = feed(DUAL(60, window, num_epochs))
    torch.testing.assert_close(tracker.compute(), reference_dual(probs, window), rtol=0, atol=5e-6)
    torch.testing.assert_close(tracker.difficulty_mean, probs.mean(0).float())


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_epochs` to be an int >= 10"):
        DUAL(3, window=10, num_epochs=9)
