"""DP: the influence vectors one by one, and the sets of samples against all there are."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from lightning_prune.scoring import dataset_pruning, influence, influence_vectors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shortest(vectors, size):
    """Try all sets of a size."""
    return min(float(vectors[list(ids)].sum(0).norm()) for ids in combinations(range(len(vectors)), size))


@pytest.mark.parametrize("seed", range(3))
def test_the_shortest_sum_of_all(seed):
    vectors = torch.randn(13, 3, generator=seeded(seed)) * torch.rand(13, 1, generator=seeded(seed))
    for size in (1, 4, 9):
        found = dataset_pruning(vectors, size, swaps=4000, generator=seeded())
        assert len(torch.unique(found)) == size
        assert float(vectors[found].sum(0).norm()) == pytest.approx(shortest(vectors, size), rel=1e-5)


def test_the_largest_set_within_a_bound():
    vectors = torch.randn(11, 3, generator=seeded(5))
    sizes = {size: shortest(vectors, size) for size in range(1, 11)}
    bound = sorted(sizes.values())[6] + 1e-6
    found = dataset_pruning(vectors, max_change=bound, swaps=4000, generator=seeded())
    assert float(vectors[found].sum(0).norm()) <= bound
    low, high = 0, 10  # the bisection takes lengths to rise with the size, which they do but for a few
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sizes[middle] <= bound else (low, middle - 1)
    assert len(found) == low
    assert dataset_pruning(vectors, max_change=0.0, generator=seeded()).tolist() == []


def test_many_samples_cancel_out():
    """Far shorter than the sum of the least influential ones, and than that of a random set of as many."""
    vectors = torch.randn(2000, 16, generator=seeded())
    found = dataset_pruning(vectors, 1000, generator=seeded())
    least = vectors[vectors.norm(dim=1).argsort()[:1000]].sum(0).norm()
    assert float(vectors[found].sum(0).norm()) < 0.1 * float(least)


def test_draws_are_the_seeds():
    vectors = torch.randn(200, 4, generator=seeded())
    first, again = (dataset_pruning(vectors, 100, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, dataset_pruning(vectors, 100, generator=seeded(2)))


def test_nothing_to_prune():
    assert dataset_pruning(torch.ones(3, 2), 0, generator=seeded()).tolist() == []


def test_influence_vectors(golden, head):
    """As long as the influences over n; in fewer directions, as long on average, within 5 standard errors."""
    logits, _, _, targets = head
    lengths = influence(logits, golden["features"], targets, damping=0.1) / 60
    exact = influence_vectors(logits, golden["features"], targets, damping=0.1)
    assert exact.shape == (60, 45)
    torch.testing.assert_close(exact.norm(dim=1), lengths)
    seen = influence_vectors(logits, golden["features"], targets, damping=0.1, dimensions=40, generator=seeded())
    ratios = (seen.norm(dim=1) / lengths).square()
    assert seen.shape == (60, 40)
    assert abs(float(ratios.mean()) - 1) < 5 * (2 / 40) ** 0.5  # of one sample; of all together it is less


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({}, "one of `num_pruned` and `max_change`, but got None and None"),
        ({"num_pruned": 1, "max_change": 1.0}, "one of `num_pruned` and `max_change`"),
        ({"num_pruned": 3}, "`num_pruned` to be an int >= 0 and <= 2"),
        ({"max_change": -1.0}, "`max_change` to be a number >= 0"),
        ({"num_pruned": 1, "swaps": -1}, "`swaps`"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        dataset_pruning(torch.ones(3, 2), **kwargs)
