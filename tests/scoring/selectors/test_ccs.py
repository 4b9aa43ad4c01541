from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.scoring import ccs
from lightning_prune.scoring.selectors.ccs import assign_strata, stratum_budgets


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_golden(golden):
    aum = golden["aum_sum"]
    dropped = golden["ccs_keep0.3_beta0.2_dropped"]
    kept = torch.tensor([i for i in range(60) if i not in dropped.tolist()])
    strata = torch.full((60,), -1)
    strata[kept] = assign_strata(aum[kept], 50)
    assert torch.equal(strata, golden["ccs_keep0.3_beta0.2_stratum_of"])
    sizes = strata[kept].bincount(minlength=50)
    assert torch.equal(sizes, golden["ccs_keep0.3_beta0.2_strata_count"])
    budgets = golden["ccs_keep0.3_beta0.2_budget_stable"]
    assert torch.equal(stratum_budgets(sizes, 18), budgets)
    for seed in range(5):
        chosen = ccs(aum, 18, hard_cutoff=0.2, generator=seeded(seed))
        assert not set(chosen.tolist()) & set(dropped.tolist())
        assert torch.equal(strata[chosen].bincount(minlength=50), budgets)


def test_the_published_upper_end():
    """1.0001 max: fifty strata of width 0.020002."""
    assert assign_strata(torch.tensor([0.0, 0.020001, 0.02001, 1.0]), 50).tolist() == [0, 0, 1, 49]


def test_the_cutoff_may_use_other_scores(golden):
    chosen = ccs(-golden["aum_sum"], 48, cutoff_scores=golden["aum_sum"], hard_cutoff=0.2, generator=seeded())
    assert not set(chosen.tolist()) & set(golden["ccs_keep0.3_beta0.2_dropped"].tolist())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.data())
def test_budgets(sizes, data):
    k = data.draw(st.integers(0, sum(sizes)))
    budgets = stratum_budgets(torch.tensor(sizes), k)
    assert budgets.sum() == k
    assert (budgets <= torch.tensor(sizes)).all()
    cut = budgets[budgets < torch.tensor(sizes)]
    if len(cut):
        assert budgets.max() <= cut.min() + 1


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.floats(0, 0.6), st.data())
@settings(max_examples=50)
def test_exactly_k_whatever_the_scores(values, hard_cutoff, data):
    """Negative, equal and few distinct scores: the published bins lose samples of these."""
    remaining = len(values) - int(len(values) * hard_cutoff + 1e-6)
    k = data.draw(st.integers(1, remaining))
    chosen = ccs(torch.tensor(values).float(), k, hard_cutoff=hard_cutoff, num_strata=7, generator=seeded())
    assert len(chosen) == k
    assert torch.equal(chosen.unique(), chosen)


def test_draws_are_uniform_within_a_stratum():
    scores = torch.tensor([0.0] * 6 + [1.0])
    counts = torch.zeros(7)
    generator = seeded()
    for _ in range(1500):
        counts[ccs(scores, 3, num_strata=2, generator=generator)] += 1
    assert counts[6] == 1500
    assert (counts[:6] - 500).abs().max() < 4.5 * (1500 * (1 / 3) * (2 / 3)) ** 0.5


def test_the_seed_decides():
    scores = torch.rand(200, generator=seeded(3))
    assert torch.equal(ccs(scores, 50, generator=seeded(1)), ccs(scores, 50, generator=seeded(1)))
    assert not torch.equal(ccs(scores, 50, generator=seeded(1)), ccs(scores, 50, generator=seeded(2)))


def test_bad_inputs():
    scores = torch.arange(10.0)
    with pytest.raises(ValueError, match=r"`k` <= 7, which `hard_cutoff=0.3` leaves of 10 samples, but got 8"):
        ccs(scores, 8, hard_cutoff=0.3)
    with pytest.raises(ValueError, match=r"`hard_cutoff` to be a number in \[0, 1\)"):
        ccs(scores, 2, hard_cutoff=1.0)
    with pytest.raises(ValueError, match="`num_strata` to be an int >= 1"):
        ccs(scores, 2, num_strata=0)
    with pytest.raises(ValueError, match="`scores` to be finite, .* but 1 are not"):
        ccs(torch.tensor([1.0, torch.inf]), 1)
    with pytest.raises(ValueError, match=r"`cutoff_scores` of the \d+ samples of `scores`, but got 9"):
        ccs(scores, 2, cutoff_scores=torch.arange(9.0))
    with pytest.raises(ValueError, match="`k` to be an int >= 1"):
        ccs(scores, 0)
