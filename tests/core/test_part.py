"""What processes that keep a part of the samples each ask of one another, against torch on the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lightning_prune.core import shared_plan, shuffle
from lightning_prune.core.part import Part, Route
from lightning_prune.core.plan import EpochPlan, Selection, random_submask
from lightning_prune.core.rng import coins, make_generator, uniform
from lightning_prune.core.shared_log import SharedLog
from lightning_prune.core.stats import finite_mean
from lightning_prune.core.step import ABSENT
from lightning_prune.functional import importance_inclusion, infobatch, orderdp, seta
from lightning_prune.methods import seta as seta_module
from lightning_prune.methods.importance_sampling import _systematic_mask
from lightning_prune.methods.random import random_subset
from lightning_prune.testing.processes import run_ranks, skip_without_fork
from lightning_prune.testing.task import equal

WORLD = 3
same_on_all_ranks = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Every rank is given the same examples; a failing one is not shrunk, since the others would not take part."""
BAD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0)


def scores_of(num, seed, share_bad):
    """Return scores of which a share is special, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num, generator=generator).mul_(4).round_().div_(4) * 10.0 ** (seed % 5 - 2)
    bad = torch.rand(num, generator=generator) < share_bad
    return torch.where(bad, torch.tensor(BAD)[torch.randint(len(BAD), (num,), generator=generator)], scores)


cases = st.tuples(st.integers(WORLD, 1500), st.integers(0, 2**20), st.sampled_from([0.0, 0.05, 1.0]))


def check_primitives(rank):
    @same_on_all_ranks
    @given(cases, st.floats(0, 1))
    def check(case, share):
        num, seed, _ = case
        part, scores = Part.of(num, rank, WORLD), scores_of(*case)
        own = part.own(scores)
        assert part.sum(len(own)) == num
        assert part.count(own > 0) == int((scores > 0).sum())
        assert equal(finite_mean(own, part), finite_mean(scores))
        torch.testing.assert_close(
            finite_mean(scores), scores[scores.isfinite()].double().mean(), equal_nan=True, rtol=1e-12, atol=1e-12
        )
        ordered = scores.nan_to_num(1.0)
        k = max(1, round(share * num))
        assert part.kth_lowest(part.own(ordered), k) == ordered.kthvalue(k).values
        mask = scores > scores.nan_to_num(0, 0, 0).mean()
        count = round(share * int(mask.sum()))
        drawn = random_submask(part.own(mask), count, torch.Generator().manual_seed(seed), part)
        assert torch.equal(drawn, part.own(random_submask(mask, count, torch.Generator().manual_seed(seed))))
        some = own[own > 0]
        narrowed = part.narrow(len(some))
        assert torch.equal(some, scores[scores > 0][narrowed.start : narrowed.stop])
        targets = torch.from_numpy(np.random.default_rng(seed + rank).integers(0, WORLD, len(own)))
        came = Route(part, targets).bring(torch.stack([targets, torch.arange(part.start, part.stop)], 1))
        assert bool((came[:, 0] == rank).all())
        assert part.sum(int(came[:, 1].sum())) == num * (num - 1) // 2

    check()


def check_rules(rank):
    @same_on_all_ranks
    @given(cases, st.floats(0, 0.95), st.floats(0.05, 1))
    def check(case, ratio, explore):
        num, seed, _ = case
        part, scores = Part.of(num, rank, WORLD), scores_of(*case)
        own = part.own(scores)

        def generator():
            return torch.Generator().manual_seed(seed)

        s = max(1, int(explore * num))
        q = max(1, int((1 - ratio) * s))
        pairs = [
            (infobatch(scores, ratio, generator=generator()), infobatch(own, ratio, generator=generator(), part=part)),
            (
                infobatch(scores, ratio, mode="bernoulli", generator=generator()),
                infobatch(own, ratio, mode="bernoulli", generator=generator(), part=part),
            ),
            (orderdp(scores, s, q, generator=generator()), orderdp(own, s, q, generator=generator(), part=part)),
            (random_subset(num, s, generator=generator()), random_subset(num, s, generator=generator(), part=part)),
        ]
        for whole, shared in pairs:
            assert part.sum(len(shared)) == len(whole)
            inside = (whole.indices >= part.start) & (whole.indices < part.stop)
            assert torch.equal(shared.indices + part.start, whole.indices[inside])
            assert equal(shared.weights, None if whole.weights is None else whole.weights[inside])

    check()


def check_laws(rank):
    """Rules whose draw depends on who shares it: what is exact of them, and the stated law of the rest."""

    @same_on_all_ranks
    @given(cases, st.floats(0, 0.9), st.integers(1, 6), st.integers(0, 3))
    def check(case, ratio, groups, epoch):
        num, seed, _ = case
        part, scores = Part.of(num, rank, WORLD), scores_of(*case)
        own = part.own(scores)
        options = {"epoch": epoch, "prune_ratio": ratio, "num_groups": groups, "window_scale": 0.6}
        whole = seta(scores, **options, generator=torch.Generator().manual_seed(seed))
        shared = seta(own, **options, generator=torch.Generator().manual_seed(seed), part=part)
        assert part.sum(len(shared)) == len(whole)  # up to a million scores, and where all are equal
        assert part.sum(int(shared.indices.sum()) + part.start * len(shared)) == int(whole.indices.sum())
        k = max(1, round((1 - ratio) * num))
        inclusion = importance_inclusion(scores.abs(), k)
        mine = importance_inclusion(own.abs(), k, part=part)
        torch.testing.assert_close(mine, part.own(inclusion), rtol=1e-9, atol=1e-12)
        mask = _systematic_mask(mine, torch.Generator().manual_seed(seed), part)
        assert part.count(mask) == k
        assert bool(mask[mine >= 1].all())

    check()
    num, draws = 90, 500  # how often each is drawn, within five standard errors of its chance
    part = Part.of(num, rank, WORLD)
    inclusion = importance_inclusion(torch.linspace(0.2, 3, num), 40)
    generator, times = torch.Generator().manual_seed(0), torch.zeros(len(part))
    for _ in range(draws):
        times += _systematic_mask(part.own(inclusion), generator, part)
    own = part.own(inclusion)
    assert bool(((times / draws - own).abs() <= 5 * (own * (1 - own) / draws).sqrt() + 1e-9).all())
    values = torch.empty(30_000).exponential_(generator=torch.Generator().manual_seed(1))
    part = Part.of(len(values), rank, WORLD)
    sketch = part.sketch(part.own(values), 3000)
    assert torch.equal(sketch, values[::10])
    seta_module._SKETCH = 3000  # then a group's share is off by a few standard errors of that of 3,000 draws
    whole = seta(values, 1, 0.0, 5, 0.6, generator=torch.Generator().manual_seed(0))
    shared = seta(part.own(values), 1, 0.0, 5, 0.6, generator=torch.Generator().manual_seed(0), part=part)
    assert abs(part.sum(len(shared)) - len(whole)) / len(values) < 5 * 0.5 / math.sqrt(3000)


def check_plans(rank):
    @same_on_all_ranks
    @given(cases, st.floats(0, 1), st.booleans(), st.booleans(), st.sampled_from([40, 1 << 24]))
    def check(case, share, weighted, shuffles, bucket):
        num, seed, _ = case
        shuffle.BUCKET, shared_plan._BLOCK = bucket, 300
        generator = torch.Generator().manual_seed(seed)
        mask = (torch.rand(num, generator=generator) < share).index_fill_(0, torch.tensor([seed % num]), True)
        weights = torch.rand(num, generator=generator)
        part = Part.of(num, rank, WORLD)

        def selection(of):
            chosen = Selection.from_mask(of(mask))
            return Selection(chosen.indices, of(weights)[chosen.indices]) if weighted else chosen

        options = {"epoch": seed % 7, "seed": seed, "shuffle": shuffles}
        whole = EpochPlan.make(selection(lambda values: values), world_size=WORLD, **options)
        chosen = selection(part.own)
        selected = None if bool(mask.all()) else chosen.mask(len(part))
        own = shared_plan.shared_plan(selected, chosen.weights, part, **options)
        assert own.length == whole.length == len(whole.order)
        assert own.shard_size == whole.shard_size
        assert torch.equal(own.shard(own.order, rank), whole.shard(whole.order, rank))
        assert torch.equal(whole.order.sort().values.long(), mask.nonzero().squeeze(1))
        if weighted:
            assert torch.equal(own.shard(own.weights, rank), whole.shard(whole.weights, rank))

    check()


@pytest.mark.ddp
@pytest.mark.parametrize("check", [check_primitives, check_rules, check_laws, check_plans])
def test_three_processes_find_what_one_does(check, tmp_path):
    skip_without_fork()
    run_ranks(check, folder=tmp_path, world_size=WORLD)


@settings(max_examples=40)
@given(st.one_of(st.integers(1, 5000), st.integers(1 << 20, 1 << 21)), st.integers(1, 64))
def test_parts_cover_everything_and_none_is_empty(total, world_size):
    if total < 1 << 20:
        world_size = min(world_size, total, 8)
    parts = [Part.of(total, rank, world_size) for rank in range(world_size)]
    assert [parts[0].start, *(part.stop for part in parts)] == [*(part.start for part in parts), total]
    assert all(len(part) for part in parts)
    assert parts[0].starts == [part.start for part in parts]


def test_parts_of_many_samples_are_even():
    lengths = [len(Part.of(10**9, rank, 8)) for rank in range(8)]
    assert max(lengths) - min(lengths) <= 2 * (1 << 16)


def test_too_many_processes_are_told_the_way_out():
    with pytest.raises(ValueError, match=r"at most 5 processes.*5 samples, but got 6.*leave it out"):
        Part.of(5, 0, 6)


@settings(max_examples=40)
@given(st.integers(1, 3000), st.data())
def test_draws_are_the_same_however_they_are_shared(total, data):
    start = data.draw(st.integers(0, total))
    part = Part(start, data.draw(st.integers(start, total)), total)
    one, other = (np.random.Generator(np.random.SFC64(total)) for _ in range(2))
    whole = coins(one, Part.whole(total))
    assert (coins(other, part) == whole[part.start : part.stop]).all()
    assert one.integers(1 << 60) == other.integers(1 << 60)
    generators = [make_generator(total, 0, "select") for _ in range(2)]
    expected = torch.rand(total, generator=generators[0])
    assert torch.equal(uniform(generators[1], part), expected[part.start : part.stop])
    assert torch.equal(*(torch.rand(3, generator=generator) for generator in generators))


def test_an_order_of_several_buckets_is_uniform(monkeypatch):
    """How often each of the 24 orders of four things comes in 2,400: chi-squared, within five standard deviations."""
    monkeypatch.setattr(shuffle, "BUCKET", 1)
    orders = torch.stack([shuffle.Shuffle(4, seed, 0).order() for seed in range(2400)])
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert abs(float(((counts - 100) ** 2 / 100).sum()) - 23) < 5 * math.sqrt(2 * 23)


def test_an_order_of_one_bucket_is_a_permutation_of_torch():
    expected = torch.randperm(1000, generator=make_generator(5, 2, "order"), dtype=torch.int32)
    assert torch.equal(shuffle.Shuffle(1000, 5, 2).order(), expected)


def test_losses_are_put_in_their_places_and_what_is_silent_is_told():
    log, losses = torch.tensor([[1.0, ABSENT, math.nan, 4.0]]), torch.full((6,), -1.0)
    shared = SharedLog(log, torch.tensor([2, 0, 5, 1]), Part.whole(6), Part.whole(4), 4, torch.tensor([0, 4]))
    brought = shared.put_into(losses, torch.tensor([False, False, True, True, False, False]))
    assert equal(losses, torch.tensor([-1.0, 4.0, 1.0, -1.0, -1.0, math.nan]))
    assert (brought.num_losses, brought.num_nonfinite) == (3, 1)
    assert (brought.silent.tolist(), brought.answered.tolist()) == ([0], [2])
