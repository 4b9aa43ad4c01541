"""Plans: orders, shards and schedules, as pure functions."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.core.plan import EpochPlan, Selection, random_submask, scheduler_calls
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler

sizes = st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(0, 3), st.booleans())


@settings(max_examples=100)
@given(sizes, st.data())
def test_shards_partition_the_selection_up_to_padding(size, data):
    n, world, epoch, shuffle = size
    ids = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    selection = Selection(torch.tensor(ids), torch.tensor(ids, dtype=torch.float32))
    plan = EpochPlan.make(selection, epoch=epoch, seed=7, shuffle=shuffle, world_size=world)
    again = EpochPlan.make(selection, epoch=epoch, seed=7, shuffle=shuffle, world_size=world)
    assert torch.equal(plan.order, again.order)
    assert sorted(plan.order.tolist()) == sorted(ids)
    assert torch.equal(plan.order.float(), plan.weights)
    shards = [plan.shard(plan.order, rank) for rank in range(world)]
    assert {len(shard) for shard in shards} == {plan.shard_size} == {-(-len(ids) // world)}
    visited = [i for shard in shards for i in shard.tolist()]
    assert set(visited) == set(ids)
    assert len(visited) - len(ids) < world
    assert torch.equal(plan.unshard(torch.stack(shards)), plan.order)
    if not shuffle:
        assert plan.order.tolist() == sorted(ids)


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 3), st.booleans(), st.integers(0, 3))
def test_batches_are_the_shard_cut_up(n, batch_size, world, drop_last, skip):
    sampler = PlanSampler(n, shuffle=True, seed=1, rank=world - 1, world_size=world)
    batches = PlanBatchSampler(sampler, batch_size, drop_last)
    whole = list(batches)
    ids = list(sampler)
    assert len(whole) == len(batches)
    assert [i for batch in whole for i in batch] == ids[: len(whole) * batch_size]
    assert all(len(batch) == batch_size for batch in (whole if drop_last else whole[:-1]))
    batches.skip = skip
    assert list(batches) == whole[skip:]
    assert len(batches) == len(whole)


def test_iterating_has_no_side_effect():
    """torch calls iter() on a sampler several times an epoch; the published samplers advanced an epoch each time."""
    sampler = PlanSampler(10, shuffle=True, seed=0)
    batches = PlanBatchSampler(sampler, 3, False)
    assert list(iter(batches)) == list(iter(batches))
    first = iter(sampler)
    next(first)
    assert list(sampler)[1:] == list(first)


def test_orders_change_with_the_epoch_and_the_seed_only():
    selection = Selection.all(20)
    orders = {
        (epoch, seed): tuple(EpochPlan.make(selection, epoch=epoch, seed=seed).order.tolist())
        for epoch in range(3)
        for seed in range(3)
    }
    assert len(set(orders.values())) == 9


def test_a_sampler_without_a_plan_is_full_length():
    sampler = PlanSampler(10, shuffle=True, seed=0)
    sampler.plan = sampler.make_plan(Selection(torch.tensor([3, 4])), 1)
    assert (len(sampler), sorted(sampler)) == (2, [3, 4])
    sampler.plan = None
    assert (len(sampler), sorted(sampler)) == (10, list(range(10)))


@settings(max_examples=100)
@given(st.integers(1, 50), st.integers(1, 200))
def test_scheduler_calls_add_up(kept, full):
    calls = [scheduler_calls(step, kept, full) for step in range(1, kept + 1)]
    assert sum(calls) == full
    assert max(calls) - min(calls) <= 1


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0], dtype=torch.float64)])
def test_selection_weights_are_float32(weights):
    selection = Selection(torch.tensor([1, 0]), weights)
    assert selection.weights is None or selection.weights.dtype == torch.float32


def test_every_submask_of_a_size_is_equally_likely():
    """The coins alone miss the size four times in five, so this sees the correction in both directions."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([True, False, True, True, True, False, True, True])
    draws, subsets = 20_000, 20  # 3 of 6
    counts = Counter(tuple(random_submask(mask, 3, generator).nonzero().flatten().tolist()) for _ in range(draws))
    assert len(counts) == subsets
    assert all(set(ids) <= {0, 2, 3, 4, 6, 7} and len(ids) == 3 for ids in counts)
    expected = draws / subsets
    spread = (expected * (1 - 1 / subsets)) ** 0.5
    assert max(abs(count - expected) for count in counts.values()) <= 5 * spread


@pytest.mark.parametrize("num", [1, 1000])
def test_a_submask_may_be_empty_or_all(num):
    mask = torch.ones(num, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    assert not random_submask(mask, 0, generator).any()
    assert random_submask(mask, num, generator).all()
    assert not random_submask(~mask, 0, generator).any()


def test_orders_of_ids_beyond_int32_are_exact():
    ids = torch.tensor([0, 2**31 - 1, 2**31, 2**40 + 1])
    order = EpochPlan.make(Selection(ids), epoch=0, seed=0).order
    assert sorted(order.tolist()) == ids.tolist()
    assert EpochPlan.make(Selection(ids[:2]), epoch=0, seed=0).order.dtype == torch.int32
