"""DivBS: the published order of picks, orthogonality, the law of the draws, and runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import DivBS, WeightedLossMixin
from lightning_prune.functional import divbs
from tests.helpers import PlainModel, make_loader, make_trainer, registry_of
from tests.reference import divbs as reference
from tests.reference.golden import GOLDEN


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_golden_order():
    golden = GOLDEN["divbs"]
    picks = divbs(torch.tensor(golden["A"]), torch.tensor(golden["F"]), golden["k"], sample=False)
    assert picks.tolist() == golden["order_official_argmax"]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4))
def test_order_against_explicit_gradients(seed, size, classes, dims):
    rng = np.random.default_rng(seed)
    a, f = rng.normal(size=(size, classes)), rng.normal(size=(size, dims))
    k = min(size, classes * dims)  # as many as are independent
    picks = divbs(torch.tensor(a), torch.tensor(f), k, sample=False).tolist()
    assert picks == reference.greedy(a, f, k)


def test_first_draw_follows_the_inner_products():
    """Chances in proportion to |<g_i, mean g>|: 6,000 draws, z <= 5."""
    rng, draws, source = np.random.default_rng(2), 6000, generator()
    a, f = rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    grads = np.einsum("ic,id->icd", a, f).reshape(7, -1)
    chances = np.abs(grads @ grads.mean(0))
    chances /= chances.sum()
    counts = np.zeros(7)
    for _ in range(draws):
        counts[int(divbs(torch.tensor(a), torch.tensor(f), 1, generator=source))] += 1
    assert (np.abs(counts / draws - chances) <= 5 * np.sqrt(chances * (1 - chances) / draws)).all()


def test_once_the_gradients_are_spanned_the_rest_is_uniform():
    """Gradients of rank 2 among 10 samples: the third pick is any of the other eight; 4,000 draws, z <= 5."""
    source, rng, draws = generator(), np.random.default_rng(3), 4000
    a, f = torch.ones(10, 1).double(), torch.tensor(rng.normal(size=(10, 2)))
    third = torch.zeros(10)
    for _ in range(draws):
        picks = divbs(a, f, 3, sample=False, generator=source)
        third[picks[2]] += 1
    free = third[third > 0] / draws
    assert len(free) == 8
    assert (free - 1 / 8).abs().max() <= 5 * math.sqrt(1 / 8 * 7 / 8 / draws)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans(), st.sampled_from([0.0, math.nan, math.inf, 1e-30]))
def test_never_twice(seed, size, sample, special):
    rng = np.random.default_rng(seed)
    a, f = rng.normal(size=(size, 2)).astype(np.float32), rng.normal(size=(size, 2)).astype(np.float32)
    a[rng.integers(size)] = special
    a[: size // 2] = a[0]
    k = int(rng.integers(1, size + 1))
    picks = divbs(torch.tensor(a), torch.tensor(f), k, sample=sample, generator=generator(seed)).tolist()
    assert len(set(picks)) == k
    assert set(picks) <= set(range(size))


def test_same_seed_same_picks_and_inputs_unchanged():
    a, f = torch.randn(9, 3, generator=generator()), torch.randn(9, 5, generator=generator())
    copies = a.clone(), f.clone()
    assert divbs(a, f, 4, generator=generator(5)).tolist() == divbs(a, f, 4, generator=generator(5)).tolist()
    assert torch.equal(a, copies[0])
    assert torch.equal(f, copies[1])


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((torch.zeros(3), torch.zeros(3, 2), 1), ValueError),
        ((torch.zeros(3, 2), torch.zeros(4, 2), 1), ValueError),
        ((torch.zeros(0, 2), torch.zeros(0, 2), 1), ValueError),
        ((torch.zeros(3, 2), torch.zeros(3, 2), 0), ValueError),
        ((torch.zeros(3, 2), torch.zeros(3, 2), 4), ValueError),
        ((torch.zeros(3, 2).long(), torch.zeros(3, 2), 1), TypeError),
    ],
)
def test_bad_inputs(args, error):
    with pytest.raises(error, match="Expected"):
        divbs(*args)


class Features(WeightedLossMixin, PlainModel):
    """Tells the inputs of its last layer."""

    gives = ("logits", "targets", "features")

    def __init__(self):
        super().__init__()
        self.batches = []

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        logits = self.layer(x)
        if self.training:
            self.batches.append(index.tolist())
        given = {"logits": logits, "targets": y, "features": x}
        losses = F.cross_entropy(logits, y, reduction="none")
        return self.weighted_loss(losses, **{name: given[name] for name in self.gives})


def test_run():
    """Batches of 8, 8, 8, 8, 8: three of each are trained."""
    model = Features()
    trainer = make_trainer(DivBS(prune_ratio=0.6), max_epochs=2)
    trainer.fit(model, make_loader(batch_size=8))
    assert [len(ids) for ids in model.batches] == [3] * 10
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - 30 / 80)


def test_run_picks_what_the_rule_picks():
    """Against gradients that autograd finds for the last layer's weights."""
    seen = []

    class Checked(DivBS):
        def pick(self, step, generator):
            grads = torch.stack(
                [
                    torch.func.grad(lambda w, x=x, y=y: F.cross_entropy(w @ x, y) / len(step.features))(weight)
                    for x, y in zip(step.features, step.targets, strict=True)
                ]
            )
            with torch.no_grad():
                logits = step.features @ weight.T
            assert torch.allclose(logits, step.logits, atol=1e-6)
            state = generator.get_state()
            picks = super().pick(step, generator)
            generator.set_state(state)
            expected = divbs(grads.flatten(1), torch.ones(len(grads), 1), len(picks), generator=generator)
            seen.append((picks.tolist(), sorted(expected.tolist())))
            return picks

    model = Features()
    model.layer = torch.nn.Linear(8, 2, bias=False)
    weight = model.layer.weight.detach()
    make_trainer(Checked(prune_ratio=0.5), max_epochs=1).fit(model, make_loader(batch_size=8))
    assert len(seen) == 5
    assert all(ours == theirs for ours, theirs in seen)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (("logits", "targets"), "features of the last layer"),
        ((), "no logits and no targets"),
        (("logits",), "no targets"),
    ],
)
def test_missing_inputs_are_named_before_anything_is_trained(gives, message):
    model = Features()
    model.gives = gives
    with pytest.raises(ValueError, match=message):
        make_trainer(DivBS()).fit(model, make_loader())
    assert not model.batches


def test_bad_arguments():
    with pytest.raises(ValueError, match="prune_ratio"):
        DivBS(prune_ratio=1.0)
