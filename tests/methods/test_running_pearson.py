"""Running sums are the sums of the window: their correlation is that of the definition, however long they ran."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.functional import alignment_score
from lightning_prune.methods._running_pearson import NUM_SUMS, make_sums, slide

NAN = float("nan")


def slid(losses, references, window, min_observed=2):
    """Return the scores after each epoch of losses ``(epochs, n)``, and the last sums."""
    n = losses.shape[1]
    ring, refs = torch.full((window, n), NAN), torch.full((window,), NAN, dtype=torch.float64)
    sums, scores = torch.zeros(NUM_SUMS, n, dtype=torch.float64), []
    for epoch, (row, reference) in enumerate(zip(losses, references, strict=True)):
        slot = epoch % window
        left, refs[slot] = refs[slot].clone(), reference
        scores.append(torch.empty(n))
        slide(sums, ring[slot], row, None, left, refs, slot, min_observed, out=scores[-1])
    return scores, sums, make_sums(ring, refs)


def defined(losses, references, epoch, window, min_observed=2):
    """Return the scores of the window that ends with ``epoch``, computed from it alone, in float64."""
    span = slice(max(0, epoch + 1 - window), epoch + 1)
    return alignment_score(losses[span].T.double(), references[span], min_observed=min_observed).float()


def test_long_runs_of_falling_losses():
    """400 epochs, 1 % less each, with gaps; at the end the squares are a 3,000th of those whose rounding is left."""
    generator = torch.Generator().manual_seed(0)
    epochs, n, window = 400, 3000, 25
    decay = 0.99 ** torch.arange(epochs)
    losses = decay[:, None] * (1 + 0.3 * torch.randn(epochs, n, generator=generator))
    losses[torch.rand(epochs, n, generator=generator) < 0.3] = NAN
    losses[torch.rand(epochs, n, generator=generator) < 0.01] = torch.inf
    references = 2 * decay.double()
    scores, sums, fresh = slid(losses, references, window, 5)
    for epoch in (60, 250, 399):
        expected = defined(losses, references, epoch, window, 5)
        assert torch.equal(scores[epoch].isnan(), expected.isnan())
        assert (scores[epoch] - expected).abs().nan_to_num().max() < 1e-5
    assert torch.allclose(sums[:6], fresh[:6], atol=1e-11)
    assert (sums[6] > fresh[6]).all()  # all that has entered


@settings(max_examples=60)
@given(st.data(), st.integers(1, 12), st.integers(2, 6))
def test_any_losses(data, epochs, window):
    value = st.floats(0.0625, 10, width=32) | st.sampled_from([NAN, float("inf"), 0.0])
    losses = torch.tensor(
        data.draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=epochs, max_size=epochs))
    )
    reference = st.lists(st.sampled_from([NAN, 0.5, 1.0, 2.0, 4.0]), min_size=epochs, max_size=epochs)
    references = torch.tensor(data.draw(reference), dtype=torch.float64)
    scores, _, _ = slid(losses, references, window)
    for epoch, score in enumerate(scores):
        expected = defined(losses, references, epoch, window)
        assert torch.equal(score.isnan(), expected.isnan())
        span = losses[max(0, epoch + 1 - window) : epoch + 1]
        varies = torch.where(span.isfinite(), span, NAN).nan_to_num(0).std(0, correction=0) > 1e-3
        difference = (score - expected).abs().nan_to_num()
        assert (difference[varies | (expected == 0)] < 1e-4).all()


def test_what_rounding_leaves_behind_is_no_score():
    """Losses that have become 0, or constant, after large ones: the sums hold but rounding, and the score is 0."""
    losses = torch.cat(
        [torch.tensor([[9.7, 3e4, 2.3]]) * torch.rand(7, 3), torch.tensor([[0.0, 0.1, 1e-9]]).repeat(9, 1)]
    )
    scores, sums, _ = slid(losses, torch.linspace(3, 1, 16, dtype=torch.float64), 5)
    assert (sums[5] != losses[-5:].double().square().sum(0)).any()  # there is something left behind
    assert torch.equal(scores[-1], torch.zeros(3))


def test_make_sums_forgets_what_has_entered():
    losses = torch.tensor([[1e6], [2.0], [1.0], [3.0]])
    references = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    scores, sums, fresh = slid(losses * torch.tensor([1, 1e-3, 1e-3, 1e-3])[:, None], references, 3)
    assert scores[-1] == 0  # hidden behind the million that has left
    part = losses[1:] * 1e-3
    later = torch.empty(1)
    slide(fresh, part[0].clone(), part[0], None, references[1], references[1:], 0, 2, out=later)
    assert torch.allclose(later, alignment_score(part.T, references[1:].float()), atol=1e-6)
    assert sums[6] > 1e11 > fresh[6]


def test_what_was_not_observed():
    """A mask and NaN say the same, and the row is that of the epoch that has entered."""
    generator = torch.Generator().manual_seed(0)
    losses, observed = torch.rand(6, 50, generator=generator), torch.rand(6, 50, generator=generator) < 0.7
    references = torch.linspace(3, 1, 6, dtype=torch.float64)
    marked = losses.masked_fill(~observed, NAN)
    _, expected, _ = slid(marked, references, 4)
    ring, refs, sums = torch.full((4, 50), NAN), torch.full((4,), NAN).double(), torch.zeros(NUM_SUMS, 50).double()
    for epoch, reference in enumerate(references):
        slot = epoch % 4
        left, refs[slot] = refs[slot].clone(), reference
        slide(sums, ring[slot], losses[epoch], observed[epoch], left, refs, slot, 2)
        assert torch.equal(ring[slot].isfinite(), observed[epoch])
        assert torch.equal(ring[slot][observed[epoch]], losses[epoch][observed[epoch]])
    assert torch.equal(sums, expected)
