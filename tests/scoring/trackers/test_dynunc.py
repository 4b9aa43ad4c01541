from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import DynUnc


def target_probs(golden):
    return golden["logits"].double().softmax(2).gather(2, golden["targets"].expand(14, 60)[..., None]).squeeze(2)


def reference_dynunc(probs, window, windows):
    """Loops over (T, n) in float64."""
    scores = []
    for q in probs.T:
        spreads = [10 * torch.std(q[w : w + window], correction=1) for w in range(windows)]
        scores.append(sum(spreads) / windows)
    return torch.stack(scores).float()


def test_golden(golden, feed):
    torch.testing.assert_close(feed(DynUnc(60)).compute(), golden["dynunc_J10"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [2, 5, 14])
def test_reference(golden, feed, window):
    expected = reference_dynunc(target_probs(golden), window, 14 - window + 1)
    torch.testing.assert_close(feed(DynUnc(60, window)).compute(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("window", [2, 5, 13])
def test_without_the_last_window(golden, feed, window):
    expected = reference_dynunc(target_probs(golden), window, 14 - window)
    tracker = feed(DynUnc(60, window, drop_last_window=True))
    torch.testing.assert_close(tracker.compute(), expected, rtol=0, atol=5e-6)


def test_exact_zero_probability_is_a_visit():
    tracker = DynUnc(1, window=3)
    for _ in range(4):
        tracker.update(torch.tensor([0]), logits=torch.tensor([[-1e9, 0.0]]), targets=torch.tensor([0]))
        tracker.end_epoch()
    assert tracker.compute().tolist() == [0.0]


def test_a_run_shorter_than_the_window(feed):
    with pytest.raises(ValueError, match="Expected at least 15 recorded epochs"):
        feed(DynUnc(60, window=14, drop_last_window=True)).compute()


def test_bad_arguments():
    with pytest.raises(ValueError, match="`window` to be an int >= 2"):
        DynUnc(3, window=1)
    with pytest.raises(ValueError, match="`num_epochs` to be an int >= 11"):
        DynUnc(3, num_epochs=10, drop_last_window=True)
