"""The spread of a series in its windows, and the correlation of norm and accuracy, one window after another."""

from __future__ import annotations

import statistics

import pytest
import torch

from lightning_prune.analysis import norm_accuracy_correlation, rolling_std


@pytest.mark.parametrize("window", [2, 5, 20])
def test_rolling_std_against_a_loop(window):
    values = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [statistics.stdev(values[i : i + window].tolist()) for i in range(20 - window + 1)]
    assert rolling_std(values, window).tolist() == pytest.approx(expected)


def test_correlation_against_the_formula():
    norms = torch.rand(30, generator=torch.Generator().manual_seed(0))
    accuracies = 0.9 - 0.2 * norms + 0.05 * torch.rand(30, generator=torch.Generator().manual_seed(1))
    expected = statistics.correlation(norms.tolist(), accuracies.tolist())
    assert norm_accuracy_correlation(norms, accuracies) == pytest.approx(expected, abs=1e-6)
    assert -1 < expected < -0.9


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: rolling_std(torch.ones(3), 1), "`window` to be an int >= 2 and <= 3"),
        (lambda: rolling_std(torch.ones(3), 4), "`window` to be an int >= 2 and <= 3"),
        (lambda: norm_accuracy_correlation(torch.rand(3), torch.rand(4)), "of the same epochs, at least 3"),
        (lambda: norm_accuracy_correlation(torch.rand(2), torch.rand(2)), "at least 3"),
        (lambda: norm_accuracy_correlation(torch.ones(4), torch.rand(4)), "`grad_norms` that change.*but all are 1"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
