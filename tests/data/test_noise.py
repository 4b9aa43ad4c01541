from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.data import inject_label_noise
from lightning_prune.data.noise import (
    _KINDS,
    CIFAR10_ONE_WAY,
    CIFAR10_TWO_WAY,
    CIFAR100_SUPERCLASSES,
    next_in_superclass,
    pairflip_matrix,
)

KINDS = {kind: 100 if "cifar100" in kind else 10 for kind in _KINDS}
EXACT = {"symmetric", "asymmetric_cifar10", "asymmetric_cifar100", "asymmetric_cifar100_next", "asymmetric_imagenet"}
TABLES = {
    "symmetric_next": [(c + 1) % 10 for c in range(10)],
    "pairflip": [(c + 1) % 10 for c in range(10)],
    "asymmetric_imagenet": [(c + 1) % 10 for c in range(10)],
    "asymmetric_cifar10": [2, 9, 0, 5, 7, 3, 8, 4, 6, 1],
    "asymmetric_cifar10_one_way": [0, 1, 0, 5, 7, 3, 6, 7, 8, 1],
}


def clean(num_classes, n=2000):
    return torch.randint(num_classes, (n,), generator=torch.Generator().manual_seed(0))


def inject(targets, kind, rate, seed=1):
    return inject_label_noise(targets, kind, rate, KINDS[kind], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_common(kind):
    targets = clean(KINDS[kind])
    before = targets.clone()
    noisy, flipped = inject(targets, kind, 0.4)
    assert torch.equal(targets, before)
    assert noisy.dtype == torch.int64
    assert torch.equal(flipped, noisy != targets)
    assert noisy.min() >= 0
    assert noisy.max() < KINDS[kind]
    assert torch.equal(noisy, inject(targets, kind, 0.4)[0])
    assert not torch.equal(noisy, inject(targets, kind, 0.4, seed=2)[0])
    assert not inject(targets, kind, 0.0)[1].any()


@pytest.mark.parametrize("kind", sorted(EXACT))
@pytest.mark.parametrize("rate", [0.2, 0.29, 0.8, 1.0])
def test_exact_counts(kind, rate):
    assert inject(clean(KINDS[kind]), kind, rate)[1].sum() == round(rate * 2000)


@pytest.mark.parametrize("kind", ["symmetric_bernoulli", "pairflip"])
def test_independent_coins(kind):
    counts = [int(inject(clean(10), kind, 0.3, seed)[1].sum()) for seed in range(40)]
    assert len(set(counts)) > 10
    assert abs(sum(counts) / 40 - 600) < 4.5 * (2000 * 0.3 * 0.7 / 40) ** 0.5


def test_uniform_over_all_changes_fewer():
    flipped = inject(clean(10, 20000), "symmetric_all", 0.5)[1]
    assert abs(float(flipped.float().mean()) - 0.45) < 0.01


@pytest.mark.parametrize("kind", ["symmetric", "symmetric_bernoulli"])
def test_uniform_over_the_others(kind):
    targets = torch.zeros(9000, dtype=torch.int64)
    noisy, _ = inject(targets, kind, 1.0)
    counts = noisy.bincount(minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 4.5 * (9000 / 9 * 8 / 9) ** 0.5


@pytest.mark.parametrize("kind", TABLES)
def test_where_labels_go(kind):
    targets = clean(10)
    noisy, flipped = inject(targets, kind, 0.5)
    assert torch.equal(noisy[flipped], torch.tensor(TABLES[kind])[targets[flipped]])


@pytest.mark.parametrize("kind", ["symmetric_next", "asymmetric_cifar10_one_way"])
def test_exact_in_every_class(kind):
    targets = clean(10)
    _, flipped = inject(targets, kind, 0.4)
    for c in range(10):
        moves = TABLES[kind][c] != c
        assert flipped[targets == c].sum() == int(0.4 * (targets == c).sum() + 1e-6) * moves


def test_cifar10_tables():
    assert [CIFAR10_TWO_WAY[c] for c in CIFAR10_TWO_WAY] == list(range(10))
    assert {c: to for c, to in enumerate(CIFAR10_ONE_WAY) if c != to} == {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}


def superclass_of():
    table = torch.empty(100, dtype=torch.int64)
    for group, members in enumerate(CIFAR100_SUPERCLASSES):
        table[list(members)] = group
    return table


def test_cifar100_tables(golden):
    assert torch.equal(superclass_of(), golden["cifar100_coarse_of_fine"])
    assert torch.equal(next_in_superclass(), golden["cifar100_next_in_superclass"])


def test_cifar100_stays_within_the_superclass():
    targets, groups = clean(100, 20000), superclass_of()
    noisy, flipped = inject(targets, "asymmetric_cifar100", 0.5)
    assert torch.equal(groups[noisy], groups[targets])
    from_4 = noisy[(targets == 4) & flipped].bincount(minlength=100)
    assert set(from_4.nonzero().flatten().tolist()) == {30, 55, 72, 95}
    noisy, flipped = inject(targets, "asymmetric_cifar100_next", 0.5)
    assert torch.equal(noisy[flipped], next_in_superclass()[targets[flipped]])


def test_cifar100_blocks():
    targets = clean(100, 20000)
    noisy, flipped = inject(targets, "asymmetric_cifar100_blocks", 0.5)
    assert torch.equal(noisy // 5, targets // 5)
    pairs = {(int(a), int(b)) for a, b in zip(targets[flipped], noisy[flipped], strict=True)}
    assert len(pairs) == 40
    assert {(b, a) for a, b in pairs} == pairs


def test_pairflip_matrix(golden):
    assert torch.equal(pairflip_matrix(5, 0.45), golden["pairflip_P_C5_r0.45"])


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 12), st.floats(0, 1))
@settings(max_examples=60)
def test_any_size_and_rate(kind, n, rate):
    noisy, flipped = inject(clean(KINDS[kind], n), kind, rate)
    assert len(noisy) == len(flipped) == n


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    inject_label_noise(clean(10), "symmetric", 0.5, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_inputs():
    targets = clean(10)
    with pytest.raises(ValueError, match="`kind` to be one of"):
        inject_label_noise(targets, "uniform", 0.5, 10)
    with pytest.raises(ValueError, match=r"`rate` to be a number in \[0, 1\]"):
        inject_label_noise(targets, "symmetric", 1.5, 10)
    with pytest.raises(ValueError, match="`num_classes=100` for 'asymmetric_cifar100', but got 10"):
        inject_label_noise(targets, "asymmetric_cifar100", 0.5, 10)
    with pytest.raises(ValueError, match="`num_classes=10` for 'asymmetric_cifar10_one_way', but got 11"):
        inject_label_noise(targets, "asymmetric_cifar10_one_way", 0.5, 11)
    with pytest.raises(ValueError, match=r"in \[0, 5\), by `num_classes=5`"):
        inject_label_noise(targets, "symmetric", 0.5, 5)
    with pytest.raises(ValueError, match="`num_classes` to be an int >= 2"):
        inject_label_noise(targets * 0, "symmetric", 0.5, 1)
    with pytest.raises(TypeError, match="`targets` to be an int64 tensor"):
        inject_label_noise(targets.float(), "symmetric", 0.5, 10)
