from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.scoring import TDDS, tdds


def reference_tdds(logits, window, decay):
    """The definition as loops, in float64; logits (T, n, C)."""
    logits = logits.astype(np.float64)
    exps = np.exp(logits - logits.max(2, keepdims=True))
    probs = exps / exps.sum(2, keepdims=True)
    total, n = probs.shape[:2]
    scores = np.zeros(n)
    for i in range(n):
        logs = np.log(probs[:, i] + 1e-8)
        steps = [np.abs(probs[t, i] * (logs[t] - logs[t - 1])).sum() for t in range(1, total)]
        for w in range(total - window + 1):
            inside = np.array(steps[w : w + window - 1])
            spread = np.sqrt(((inside - inside.mean()) ** 2).sum())
            scores[i] += decay * (1 - decay) ** (total - window - w) * spread
    return scores


def random_logits(epochs, n, num_classes, seed, scale=3.0):
    return torch.randn(epochs, n, num_classes, generator=torch.Generator().manual_seed(seed)) * scale


def stream(tracker, logits):
    for epoch in logits:
        tracker.update(torch.arange(logits.shape[1]), logits=epoch)
        tracker.end_epoch()
    return tracker


def test_golden(golden, feed):
    score = feed(TDDS(60, 5, window=5)).compute()
    torch.testing.assert_close(score, golden["tdds_T14_K5_a0.9_score"], rtol=0, atol=2e-6)
    offline = tdds(golden["logits"].softmax(2), window=5)
    torch.testing.assert_close(offline, golden["tdds_T14_K5_a0.9_score"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("epochs", "window", "decay"), [(10, 5, 0.9), (14, 10, 0.9), (12, 4, 0.5), (3, 3, 1.0)])
def test_golden_run_against_the_reference(golden, feed, epochs, window, decay):
    expected = reference_tdds(golden["logits"][:epochs].numpy(), window, decay)
    score = feed(TDDS(60, 5, window, decay), epochs=epochs).compute()
    np.testing.assert_allclose(score.numpy(), expected, rtol=0, atol=2e-6)


def test_streaming_equals_the_formula_after_every_epoch():
    logits = random_logits(15, 20, 6, seed=0)
    tracker = TDDS(20, 6, window=4, precision="float32")
    for epoch in range(15):
        stream(tracker, logits[epoch : epoch + 1])
        if epoch >= 3:
            expected = tdds(logits[: epoch + 1].softmax(2), window=4)
            torch.testing.assert_close(tracker.compute(), expected, rtol=0, atol=2e-6)


@given(st.integers(3, 6), st.integers(0, 5), st.floats(0.1, 1.0), st.integers(0, 1000))
@settings(max_examples=25)
def test_streaming_equals_the_formula(window, more, decay, seed):
    logits = random_logits(window + more, 5, 3, seed)
    tracker = stream(TDDS(5, 3, window, decay, precision="float32"), logits)
    expected = reference_tdds(logits.numpy(), window, decay)
    np.testing.assert_allclose(tracker.compute().numpy(), expected, rtol=0, atol=5e-6)


def test_half_precision_keeps_the_ranks():
    """Within 0.5 % of the scores, so nearly the same top half."""
    logits = random_logits(1, 2000, 100, seed=0) + torch.cumsum(random_logits(20, 2000, 100, seed=1, scale=0.5), 0)
    exact = stream(TDDS(2000, window=10, precision="float32"), logits)
    half = stream(TDDS(2000, window=10), logits)  # a large table: "auto" is half precision
    assert half.state["log_probs"].dtype == torch.float16
    a, b = exact.compute(), half.compute()
    assert ((a - b).abs() / a).max() < 5e-3
    top = [set(scores.argsort()[1000:].tolist()) for scores in (a, b)]
    assert len(top[0] & top[1]) >= 990


def test_auto_is_exact_for_small_tables_only():
    for n, dtype in ((2**13 // 8, torch.float32), (2**13 // 8 + 1, torch.float16)):
        tracker = stream(TDDS(n), torch.zeros(1, n, 8))
        assert tracker.state["log_probs"].dtype == dtype


def test_a_missed_epoch_is_skipped():
    logits = random_logits(8, 2, 3, seed=3)
    tracker = TDDS(2, window=3)
    for epoch in range(8):
        ids = torch.tensor([0, 1] if epoch != 4 else [1])
        tracker.update(ids, logits=logits[epoch][ids])
        tracker.end_epoch()
    expected = tdds(logits[[0, 1, 2, 3, 5, 6, 7]].softmax(2), window=3)[0]
    torch.testing.assert_close(tracker.compute()[0], expected, rtol=0, atol=2e-6)


def test_num_epochs_freezes_the_score():
    logits = random_logits(9, 4, 3, seed=5)
    a, b = stream(TDDS(4, window=3, num_epochs=6), logits), stream(TDDS(4, window=3), logits[:6])
    assert torch.equal(a.compute(), b.compute())


def test_constant_predictions_score_zero():
    assert stream(TDDS(3, window=3), torch.ones(6, 3, 4)).compute().tolist() == [0.0, 0.0, 0.0]


def test_a_run_shorter_than_the_window():
    with pytest.raises(ValueError, match="Expected at least 10 recorded epochs .* Train longer or choose a shorter"):
        stream(TDDS(4), random_logits(9, 4, 3, seed=0)).compute()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"window": 2}, "`window` to be an int >= 3"),
        ({"decay": 0.0}, r"`decay` to be a number in \(0, 1\]"),
        ({"decay": 1.5}, "`decay`"),
        ({"num_classes": 1}, "`num_classes` to be an int >= 2"),
        ({"num_epochs": 5}, "`num_epochs` to be an int >= 10"),
        ({"precision": "int8"}, "`precision` to be one of"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        TDDS(4, **kwargs)


def test_bad_inputs():
    with pytest.raises(ValueError, match="`logits` of 4 classes, but got 3"):
        TDDS(4, 4).update(torch.arange(4), logits=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="`window` to be an int >= 3 and <= 4"):
        tdds(torch.zeros(4, 1, 2), window=5)
