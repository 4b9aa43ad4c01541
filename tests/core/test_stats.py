"""Sums of per-sample values: of the chunks, each added up alone, whoever has them."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_prune.core.part import Part, chunk_size
from lightning_prune.core.stats import _FEW, double_sum, finite_mean
from lightning_prune.testing.task import equal

SIZES = [*range(1, 70), 1000, 1501, 4096, 9999, _FEW - 1, _FEW, _FEW + 1, 100_000]


def values_of(num):
    """Return values of many magnitudes, whose sum depends on the order of adding."""
    generator = torch.Generator().manual_seed(num)
    return torch.randn(num, generator=generator) * 10 ** torch.randn(num, generator=generator)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sum_is_that_of_its_chunks(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for num in SIZES:
            values = values_of(num)
            alone = [chunk.sum(dtype=torch.float64) for chunk in torch.split(values, chunk_size(num))]
            assert equal(double_sum(values), torch.stack(alone).sum()), num
            assert float(double_sum(values)) == pytest.approx(math.fsum(values.tolist()), rel=1e-12, abs=1e-12)
    finally:
        torch.set_num_threads(before)


def test_a_view_with_gaps_has_the_sum_of_its_copy():
    for num in (5, 40, 1000):
        view = values_of(2 * num)[::2]
        assert equal(double_sum(view), double_sum(view.clone()))


def test_the_sum_of_a_part_is_what_its_chunks_add(monkeypatch):
    """What each process of three hands to the others."""
    values, handed = values_of(1001), []

    def hand(part, sums, start, total):
        handed.append((start, sums))
        return sums

    monkeypatch.setattr(Part, "joined", hand)
    for rank in range(3):
        part = Part.of(1001, rank, 3)
        double_sum(part.own(values), part)
    chunks = [chunk.sum(dtype=torch.float64) for chunk in torch.split(values, chunk_size(1001))]
    assert equal(torch.cat([sums for _, sums in handed]), torch.stack(chunks))
    for start, sums in handed:
        assert equal(sums, torch.stack(chunks[start : start + len(sums)]))


def test_the_mean_of_equal_values_is_that_value():
    for value in (0.1, 1e-30, 3e38):
        for num in (1, 7, 64, 1000, 4097):
            assert float(finite_mean(torch.full((num,), value))) == float(torch.tensor(value))
    assert math.isnan(finite_mean(torch.tensor([math.nan, math.inf])))
    assert float(finite_mean(torch.tensor([1.0, math.nan, 2.0, -math.inf]))) == 1.5
