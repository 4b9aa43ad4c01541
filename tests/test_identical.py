"""With nothing to prune, a run is bit for bit the run without us; and the global random numbers stay the user's."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import torch

from lightning_prune import InfoBatch, RandomPruning, ScoreRegistry
from tests.helpers import Keep, Model, PlainModel, make_loader, make_trainer


def fit(model, callbacks, **kwargs):
    torch.manual_seed(5)
    loader = make_loader(shuffle=False, num_workers=kwargs.pop("num_workers", 0))
    make_trainer(*callbacks, max_epochs=3, **kwargs).fit(model, loader)
    return model


NOTHING_PRUNED = {
    "infobatch": lambda: [InfoBatch(prune_ratio=0)],
    "infobatch_warmup": lambda: [InfoBatch(prune_ratio=0.5, warmup_epochs=3)],
    "random": lambda: [RandomPruning(prune_ratio=0)],
    "random_rescaled": lambda: [RandomPruning(prune_ratio=0, rescale=True)],
    "registry_alone": lambda: [ScoreRegistry()],
}


KINDS = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 3},
    "amp": {"precision": "bf16-mixed"},
    "workers": {"num_workers": 2},
}


@cache
def without_us(kind):
    return fit(PlainModel(dropout=0.3), [], **KINDS[kind])


@pytest.mark.parametrize("name", NOTHING_PRUNED)
@pytest.mark.parametrize("kind", KINDS)
def test_bit_identical(name, kind):
    plain = without_us(kind)
    pruned = fit(Model(dropout=0.3), NOTHING_PRUNED[name](), **KINDS[kind])
    assert pruned.seen == plain.seen
    assert torch.equal(pruned.layer.weight, plain.layer.weight)
    assert torch.equal(pruned.layer.bias, plain.layer.bias)


def states():
    numpy_state = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2:]


@pytest.mark.parametrize("callback", [Keep(0.5, 1.0), RandomPruning(0.5), InfoBatch()], ids=repr)
def test_global_random_numbers_are_left_alone(callback):
    after = []
    for callbacks, model in (((), PlainModel()), ((callback,), Model())):
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        make_trainer(*callbacks, max_epochs=3).fit(model, make_loader(shuffle=False))
        after.append(states())
    assert after[0] == after[1]


def test_global_seed_does_not_change_a_selection(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    seen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Model()
        make_trainer(RandomPruning(0.5, seed=3)).fit(model, make_loader())
        seen.append(model.seen)
    assert seen[0] == seen[1]


def test_seed_everything_is_the_default_seed(monkeypatch):
    seen = {}
    for name, variable, seed in (("a", "4", None), ("b", "4", None), ("c", "5", None), ("d", "5", 4)):
        monkeypatch.setenv("PL_GLOBAL_SEED", variable)
        model = Model()
        make_trainer(RandomPruning(0.5, seed=seed)).fit(model, make_loader())
        seen[name] = model.seen
    assert seen["a"] == seen["b"] == seen["d"] != seen["c"]
