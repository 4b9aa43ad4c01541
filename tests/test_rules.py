"""Properties of every pure rule: what it returns is a selection, follows its law of the count, and is its own only."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_prune import Selection, functional
from lightning_prune.core.plan import EpochPlan, num_keep
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler

quick = settings(max_examples=50)
ratios = st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.75, 0.99])
shares = st.sampled_from([0.01, 0.25, 0.5, 0.9, 1.0])
# few values, so that there are ties; all that a loss can be
loss = st.sampled_from([0.0, 1e-30, 0.5, 1.0, 2.302585, 3e38, -1.0, math.nan, math.inf, -math.inf]) | st.floats(
    0, 10, width=32
)
losses = st.lists(loss, min_size=1, max_size=40).map(lambda values: torch.tensor(values, dtype=torch.float32))
distinct = st.lists(st.integers(0, 1000), min_size=1, max_size=40, unique=True).map(lambda v: torch.tensor(v).float())
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low(scores: torch.Tensor) -> int:
    """Return how many finite scores are below the mean of the finite ones."""
    finite = scores[scores.isfinite()].double()
    return int((finite < finite.sum() / len(finite)).sum()) if len(finite) else 0


def between(count, least, most):
    return least <= count <= most


# By name: how to call it with drawn arguments, and the law of the number kept.
SELECTIONS = {
    "infobatch": (
        lambda s, d: {"prune_ratio": d(ratios), "mode": d(st.sampled_from(["exact", "bernoulli"]))},
        lambda k, s, a: (
            between(
                len(s) - k, math.floor(a["prune_ratio"] * low(s) - 1e-6), math.ceil(a["prune_ratio"] * low(s) + 1e-6)
            )
            if a["mode"] == "exact"
            else between(len(s) - k, 0, low(s))
        ),
    ),
    "seta": (
        lambda s, d: {
            "epoch": d(st.integers(0, 9)),
            "prune_ratio": d(ratios),
            "num_groups": d(st.integers(1, 6)),
            "window_scale": d(shares),
        },
        lambda k, s, a: (
            between(k, 1, num_keep(len(s), 1 - a["prune_ratio"]))
            if a["epoch"]
            else k == num_keep(len(s), 1 - a["prune_ratio"])
        ),
    ),
    "orderdp": (
        lambda s, d: (lambda size: {"explore_size": size, "exploit_size": d(st.integers(1, size))})(
            d(st.integers(1, len(s)))
        ),
        lambda k, s, a: k == a["exploit_size"],
    ),
    "epsilon_greedy": (
        lambda s, d: {"num_keep": d(st.integers(1, len(s))), "epsilon": d(st.sampled_from([0.0, 0.1, 0.5, 1.0]))},
        lambda k, s, a: k == a["num_keep"],
    ),
}
SELECTIONS = {name: value for name, value in SELECTIONS.items() if name in functional.__all__}


def test_every_rule_that_selects_is_here():
    rules = {name: getattr(functional, name) for name in functional.__all__}
    assert {name for name, rule in rules.items() if inspect.signature(rule).return_annotation == "Selection"} == set(
        SELECTIONS
    )


@pytest.mark.parametrize("name", SELECTIONS)
@quick
@given(losses, seeds, st.data())
def test_selections(name, scores, seed, data):
    """A subset without repeats, weights finite and positive, the law of the count; nothing else is touched."""
    make, law = SELECTIONS[name]
    rule, arguments = getattr(functional, name), make(scores, data.draw)
    before, state = scores.clone(), torch.get_rng_state()
    selection = rule(scores, **arguments, generator=generator(seed))
    assert isinstance(selection, Selection)
    selection.check(len(scores))
    assert selection.indices.tolist() == sorted(set(selection.indices.tolist()))
    assert law(len(selection), scores, arguments)
    if selection.weights is not None:
        assert selection.weights.isfinite().all()
        assert (selection.weights > 0).all()
    again = rule(scores, **arguments, generator=generator(seed))
    assert torch.equal(selection.indices, again.indices)
    assert torch.equal(scores.nan_to_num(-2), before.nan_to_num(-2))
    assert torch.equal(torch.get_rng_state(), state)


def permuted(rule, scores, order):
    """Return what a rule keeps of permuted scores, by the ids that they had before."""
    return sorted(order[rule(scores[order]).indices].tolist())


@quick
@given(distinct, st.randoms(use_true_random=False), st.data())
def test_permuting_the_ids_permutes_what_is_kept(scores, random, data):
    """Where nothing is drawn: everything is a candidate, no share is random."""
    order = torch.tensor(random.sample(range(len(scores)), len(scores)))
    k, epoch = data.draw(st.integers(1, len(scores))), data.draw(st.integers(0, 9))
    groups, scale = data.draw(st.integers(1, 6)), data.draw(shares)
    rules = {
        "orderdp": lambda s: functional.orderdp(s, len(s), k),
        "seta": lambda s: functional.seta(s, epoch, 0.0, groups, scale),
        "epsilon_greedy": lambda s: functional.epsilon_greedy(s, k, 0.0),
        "infobatch": lambda s: functional.infobatch(s, 0.0),
    }
    assert set(SELECTIONS) <= set(rules)
    for name in SELECTIONS:
        if name == "seta":
            assume(len(scores) > 1)  # one sample is a tie, and ties are drawn
        assert permuted(rules[name], scores, order) == rules[name](scores).indices.tolist(), name
    assert sorted(scores[rules["orderdp"](scores).indices].tolist()) == sorted(scores.tolist())[-k:]


@quick
@given(losses, ratios, st.integers(1, 5), seeds)
def test_repb(scores, ratio, size, seed):
    windows = torch.arange(len(scores)) // size
    stays = functional.repb_retain(scores, windows, ratio, generator=generator(seed))
    for window in range(int(windows[-1]) + 1):
        inside = windows == window
        values = scores[inside]
        finite = values[values.isfinite()].double()
        mean = finite.sum() / len(finite)
        sure = ~values.isfinite() | (values.double() >= mean)
        assert stays[inside][sure].all()
        if ratio == 0:
            assert stays[inside].all()
    enters = functional.repb_resample(stays, ratio, generator=generator(seed))
    assert not (enters & stays).any()
    assert ratio > 0 or (enters | stays).all()


@quick
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 20))
def test_attendance_weights(counts, more):
    epochs = max(counts) + more
    weights = functional.ctr_weights(torch.tensor(counts), epochs)
    assert torch.allclose(weights * torch.tensor(counts), torch.tensor(float(epochs)))
    assert (weights >= 1).all()


@quick
@given(distinct, st.integers(1, 6), st.randoms(use_true_random=False))
def test_groups(values, num_groups, random):
    """Ordered by value, all of them used, and a matter of the values only."""
    groups = functional.kmeans_1d(values, num_groups)
    assert set(groups.tolist()) == set(range(min(num_groups, len(values))))
    assert (groups[values.argsort()].diff() >= 0).all()
    order = torch.tensor(random.sample(range(len(values)), len(values)))
    assert torch.equal(functional.kmeans_1d(values[order], num_groups), groups[order])


@quick
@given(st.integers(1, 200), st.data())
def test_inclusion_probabilities_of_orderdp(n, data):
    s = data.draw(st.integers(1, n))
    q = data.draw(st.integers(1, s))
    gamma = functional.orderdp_inclusion(n, s, q)
    assert gamma.sum().item() == pytest.approx(q, rel=1e-9)
    assert (gamma.diff() <= 1e-12).all()
    assert between(gamma.min().item(), 0, 1)
    assert between(gamma.max().item(), 0, 1 + 1e-12)


def exported(name):
    return pytest.mark.skipif(name not in functional.__all__, reason="not exported")


importances = st.lists(
    st.floats(0, 100, width=32) | st.sampled_from([0.0, math.nan, math.inf]), min_size=1, max_size=40
)


@exported("importance_inclusion")
@quick
@given(importances, st.data())
def test_importance(values, data):
    importance = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(1, len(values)))
    chances = functional.importance_inclusion(importance, k)
    assert chances.sum().item() == pytest.approx(k, rel=1e-9)
    assert (chances >= 0).all()
    assert (chances <= 1).all()
    finite = importance.isfinite()
    order = importance[finite].argsort()
    assert (chances[finite][order].diff() >= -1e-12).all()
    permutation = torch.randperm(len(values), generator=generator(k))
    assert torch.allclose(functional.importance_inclusion(importance[permutation], k), chances[permutation])
    drawn = functional.systematic_sample(chances, generator=generator(k))
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == k
    assert (chances[drawn] > 0).all()
    assert set((chances >= 1).nonzero().flatten().tolist()) <= set(drawn.tolist())


@exported("importance_inclusion")
def test_importance_that_rounding_swallows():
    chances = functional.importance_inclusion(torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 2e-16]), 5)
    assert chances.sum().item() == pytest.approx(5)


@exported("selective_backprop_probs")
@quick
@given(st.integers(1, 300), st.sampled_from([0.01, 0.25, 0.5, 1.0]))
def test_chances_of_selective_backprop(n, keep_ratio):
    chances = functional.selective_backprop_probs(n, keep_ratio)
    assert chances.sum().item() == pytest.approx(1)
    assert (chances.diff() >= 0).all()
    assert (chances >= 0).all()


@exported("divbs")
@quick
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), seeds, st.booleans(), st.data())
def test_diverse_picks(size, classes, width, seed, sample, data):
    k = data.draw(st.integers(1, size))
    rng = generator(seed)
    grads = torch.randn(size, classes, generator=rng) * data.draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
    features = torch.randn(size, width, generator=rng)
    if data.draw(st.booleans()):
        grads[0] = math.nan
    picks = functional.divbs(grads, features, k, sample=sample, generator=generator(seed))
    assert len(picks) == len(set(picks.tolist())) == k
    assert between(picks.min(), 0, size - 1)
    assert between(picks.max(), 0, size - 1)


@exported("alignment_score")
@quick
@given(
    st.integers(1, 12), st.integers(2, 8), seeds, st.sampled_from(["pearson", "spearman", "cosine", "dtw"]), st.data()
)
def test_alignment(n, epochs, seed, correlation, data):
    """Sample by sample: permuting samples permutes scores; bounded; too few observations are NaN."""
    rng = generator(seed)
    trajectories, reference = torch.rand(n, epochs, generator=rng), torch.rand(epochs, generator=rng)
    mask = torch.rand(n, epochs, generator=rng) < data.draw(st.sampled_from([0.3, 0.8, 2.0]))
    score = functional.alignment_score(trajectories, reference, correlation=correlation, mask=mask)
    assert torch.equal(score.isnan(), mask.sum(1) < 2)
    known = score[~score.isnan()]
    assert (known <= (0 if correlation == "dtw" else 1)).all()
    assert correlation == "dtw" or (known >= -1).all()
    order = torch.randperm(n, generator=rng)
    moved = functional.alignment_score(trajectories[order], reference, correlation=correlation, mask=mask[order])
    assert torch.allclose(moved, score[order], equal_nan=True, atol=1e-6)


@exported("instance_early_stopping")
@quick
@given(st.integers(1, 12), st.integers(1, 10), st.integers(1, 4), seeds, st.floats(0, 2))
def test_mastered(n, epochs, average, seed, threshold):
    """Sample by sample; more with a higher threshold; a constant loss is mastered, a missing one is not."""
    rng = generator(seed)
    history = torch.rand(n, epochs, generator=rng)
    mastered = functional.instance_early_stopping(history, threshold, average)
    order = torch.randperm(n, generator=rng)
    assert torch.equal(functional.instance_early_stopping(history[order], threshold, average), mastered[order])
    assert not (mastered & ~functional.instance_early_stopping(history, threshold + 1, average)).any()
    long = epochs >= average + 3
    assert functional.instance_early_stopping(torch.ones(1, epochs), 0.1, average).item() == long
    history[:, -1] = math.nan
    assert not functional.instance_early_stopping(history, threshold, average).any()


@exported("ucb_update")
@quick
@given(losses, seeds, st.sampled_from([0.1, 0.5, 1.0]))
def test_running_moments(values, seed, smoothing):
    n = len(values)
    mean, var = torch.rand(n, generator=generator(seed)), torch.rand(n, generator=generator(seed + 1))
    mean[0] = math.nan
    new_mean, new_var = functional.ucb_update(mean, var, values, smoothing)
    finite = values.isfinite()
    assert torch.equal(new_mean[~finite].nan_to_num(-1), mean[~finite].nan_to_num(-1))
    assert torch.equal(new_var[~finite], var[~finite])
    if bool(finite[0]):
        assert (new_mean[0], new_var[0]) == (values[0], 0)
    order = torch.randperm(n, generator=generator(seed))
    moved = functional.ucb_update(mean[order], var[order], values[order], smoothing)
    assert torch.equal(moved[0].nan_to_num(-1), new_mean[order].nan_to_num(-1))


@quick
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 7), st.booleans(), seeds)
def test_a_step_of_all_ranks_is_a_run_of_the_order(n, world_size, batch_size, shuffle, seed):
    """So windows of steps and the union of batches do not depend on how many processes there are."""
    order = EpochPlan.make(Selection.all(n), epoch=0, seed=seed, shuffle=shuffle, world_size=world_size).order.tolist()
    ranks = [
        list(
            PlanBatchSampler(
                PlanSampler(n, shuffle=shuffle, seed=seed, rank=r, world_size=world_size), batch_size, False
            )
        )
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    step = batch_size * world_size
    for i, batches in enumerate(zip(*ranks, strict=True)):
        assert len({len(batch) for batch in batches}) == 1
        run = order[i * step : (i + 1) * step]
        together = [ids[j] for j in range(len(batches[0])) for ids in batches]
        assert together[: len(run)] == run
        assert len(together) - len(run) < world_size
