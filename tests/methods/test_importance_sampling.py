"""Importance sampling: probabilities that add up, draws that keep to them, weights without bias, and the run."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import ImportanceSampling
from lightning_prune.functional import importance_inclusion, multiple_importance, systematic_sample
from tests.cli_check import check_yaml
from tests.helpers import BareModel, Model, make_loader, make_trainer, registry_of
from tests.reference import importance as reference
from tests.reference.golden import GOLDEN
from tests.resume_check import check_resume


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


positive = st.floats(2**-20, 2**20, width=32)


@settings(max_examples=200)
@given(
    st.lists(positive | st.just(0.0), min_size=1, max_size=20),
    st.sampled_from([torch.float32, torch.float64]),
    st.data(),
)
def test_inclusion_against_the_loop(values, dtype, data):
    k = data.draw(st.integers(1, len(values)))
    importance = torch.tensor(values, dtype=dtype)
    inclusion = importance_inclusion(importance, k)
    assert importance.tolist() == values
    assert inclusion.dtype == torch.float64
    assert inclusion.tolist() == pytest.approx(reference.inclusion(importance.tolist(), k), abs=1e-12)
    assert math.fsum(inclusion.tolist()) == pytest.approx(k, abs=1e-9)
    assert float(inclusion.max()) <= 1
    if min(values) > 0:
        assert float(inclusion.min()) > 0


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_many_samples_add_up_to_a_billionth(sigma):
    importance = torch.empty(200_000).log_normal_(0, sigma, generator=generator())
    inclusion = importance_inclusion(importance, 70_000)
    assert math.fsum(inclusion.tolist()) == pytest.approx(70_000, abs=1e-9)
    assert float(inclusion.min()) > 0
    assert float(inclusion.max()) == 1
    below = inclusion < 1
    rate = inclusion[below] / importance[below].double()
    assert float(rate.max() / rate.min()) == pytest.approx(1, rel=1e-12)
    assert float((importance[~below].double() * rate[0]).min()) >= 1 - 1e-9


def test_golden_probabilities():
    case = GOLDEN["importance_sampling"]
    inclusion = importance_inclusion(torch.tensor(case["q"]), 1)
    assert inclusion.tolist() == pytest.approx(case["p"], rel=1e-12)
    assert (1 / (4 * inclusion)).tolist() == pytest.approx(case["w"], rel=1e-12)


@pytest.mark.parametrize(
    ("importance", "k", "expected"),
    [
        ([2.0], 1, [1.0]),
        ([3.0, 3.0, 3.0, 3.0], 3, [0.75] * 4),
        ([0.0, 0.0, 0.0, 0.0], 2, [0.5] * 4),
        ([0.0, 0.0, 8.0, 1.0], 3, [0.5, 0.5, 1.0, 1.0]),
        ([0.0, 8.0, 1.0], 1, [0.0, 8 / 9, 1 / 9]),
        ([math.nan, 1.0, 3.0], 2, [1.0, 0.25, 0.75]),
        ([math.inf, -math.inf, math.nan, 3.0], 2, [2 / 3] * 3 + [0.0]),
        ([math.nan, 0.0, 0.0], 2, [1.0, 0.5, 0.5]),
        ([1.0, 5.0, 1e-30], 3, [1.0] * 3),
    ],
)
def test_edge_cases(importance, k, expected):
    values = torch.tensor(importance)
    assert importance_inclusion(values, k).tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(values.nan_to_num(), torch.tensor(importance).nan_to_num())


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 5))
def test_sample_against_the_loop(chances, seed):
    inclusion = torch.tensor(chances, dtype=torch.float64)
    before = inclusion.clone()
    drawn = systematic_sample(inclusion, generator=generator(seed)).tolist()
    assert torch.equal(inclusion, before)
    source, unsure = generator(seed), [i for i, chance in enumerate(chances) if chance < 1]
    order = torch.randperm(len(unsure), generator=source, dtype=torch.int32).tolist()
    offset = 1 - (torch.randint(2**30, (), generator=source).item() + 0.5) / 2**30 if unsure else 0.5
    assert drawn == sorted(set(drawn))
    assert abs(len(drawn) - math.fsum(chances)) < 1 + 1e-6
    sure = [i for i, chance in enumerate(chances) if chance == 1]
    assert drawn == sorted(sure + reference.systematic(chances, [unsure[i] for i in order], offset))
    assert all(chances[i] > 0 for i in drawn)


def test_frequencies_are_the_probabilities():
    """20,000 draws of exactly 4 among 12, z <= 5; and no pair is excluded by its place."""
    importance = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.5, 0.8, 1.0, 1.3, 2.0, 2.5, 6.0, 9.0])
    inclusion, draws, source = importance_inclusion(importance, 4), 20_000, generator()
    inside = torch.zeros(draws, 12, dtype=torch.float64)
    for row in inside:
        row[systematic_sample(inclusion, generator=source)] = 1
    assert bool((inside.sum(1) == 4).all())
    spread = (inclusion * (1 - inclusion) / draws).sqrt()
    assert bool(((inside.mean(0) - inclusion).abs() <= 5 * spread).all())
    pairs = inside.T @ inside
    assert bool((pairs > 0).all())


def test_a_fractional_total_rounds_at_random():
    inclusion, draws, source = torch.tensor([0.9, 0.4, 0.4, 0.6]), 10_000, generator()
    counts = torch.tensor([len(systematic_sample(inclusion, generator=source)) for _ in range(draws)])
    assert set(counts.tolist()) == {2, 3}
    share = float((counts == 3).double().mean())
    assert abs(share - 0.3) <= 5 * math.sqrt(0.21 / draws)


def test_weights_make_sums_unbiased():
    """E[sum of w g over the drawn] = sum of g, for vectors g; 20,000 draws, z <= 5."""
    source, draws = generator(2), 20_000
    importance = torch.empty(30).exponential_(generator=source)
    inclusion = importance_inclusion(importance, 9)
    vectors = torch.randn(30, 3, generator=source, dtype=torch.float64)
    sums = torch.zeros(draws, 3, dtype=torch.float64)
    for row in sums:
        drawn = systematic_sample(inclusion, generator=source)
        row += (vectors[drawn] / inclusion[drawn, None]).sum(0)
    error = (sums.mean(0) - vectors.sum(0)).abs()
    assert bool((error <= 5 * sums.std(0) / math.sqrt(draws)).all())


class GradModel(Model):
    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        self.losses(batch)
        logits = self.layer(x)
        return self.weighted_loss(F.cross_entropy(logits, y, reduction="none"), logits=logits, targets=y)


class Watch(ImportanceSampling):
    """Notes what each epoch recorded, and its selection."""

    def on_fit_start(self, trainer, pl_module):
        self.epochs = []

    def on_epoch_recorded(self, registry, record):
        super().on_epoch_recorded(registry, record)
        values = dict(zip(record.indices.tolist(), record.extra["importance"].tolist(), strict=True))
        self.epochs.append((values, registry.selection, record.losses.tolist()))


@pytest.mark.parametrize("model", [BareModel, GradModel])
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_fit(model, floor):
    """Exactly 20 of 40; weights 1 / min(1, tau q) of the importance as the loop averages it."""
    method = Watch(0.5, 0.25, floor, seed=0)
    trainer, module = make_trainer(method, max_epochs=5), model()
    trainer.fit(module, make_loader())
    importance: dict[int, float] = {}
    for epoch, (values, selection, losses) in enumerate(method.epochs):
        if epoch == 0:
            assert len(selection) == 40
            assert selection.weights is None
        else:
            mean = sum(importance.values()) / 40
            floored = [max(importance[i], max(floor, 1e-6) * mean) for i in range(40)]
            inclusion = reference.inclusion(floored, 20)
            assert len(selection) == 20
            expected = [1 / inclusion[i] for i in selection.indices.tolist()]
            assert selection.weights.tolist() == pytest.approx(expected, rel=1e-4)
        for i, value in values.items():
            importance[i] = value if epoch == 0 else 0.25 * importance[i] + 0.75 * value
        if model is BareModel:
            assert list(values.values()) == losses
    column = registry_of(trainer).column("importance")
    assert column.tolist() == pytest.approx([importance[i] for i in range(40)], rel=1e-4)


def test_gradient_norm_is_the_distance_from_the_label():
    method, model, loader = Watch(seed=0), GradModel(), make_loader(batch_size=40)
    weight = model.layer.weight.detach().clone()
    make_trainer(method, max_epochs=1).fit(model, loader)
    x, y, _ = loader.dataset.tensors
    expected = ((x @ weight.T).softmax(1) - F.one_hot(y, 2)).norm(dim=1)
    assert [method.epochs[0][0][i] for i in range(40)] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
def test_a_loss_that_is_not_finite_keeps_the_sample_with_weight_one():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            self.weighted_loss(losses.where(batch[2] != 7, math.nan))
            return self.weighted_loss(losses, record=False)

    method = Watch(0.8, seed=0)
    make_trainer(method, max_epochs=4).fit(Broken(), make_loader())
    for _, selection, _ in method.epochs[1:]:
        position = selection.indices.tolist().index(7)
        assert selection.weights[position] == 1
        assert len(selection) == 8


def test_samples_without_a_loss_come_first():
    method = Watch(0.25, seed=0)
    make_trainer(method, max_epochs=2, limit_train_batches=5).fit(Model(), make_loader())
    unseen = set(range(40)) - set(method.epochs[0][0])
    assert len(unseen) == 20
    assert unseen <= set(method.epochs[1][1].indices.tolist())


def test_resume_with_gradient_norms(tmp_path):
    check_resume(lambda: ImportanceSampling(0.45, seed=3), tmp_path, GradModel)


def test_yaml(monkeypatch, tmp_path):
    check_yaml(monkeypatch, tmp_path, "ImportanceSampling", {"prune_ratio": 0.5, "smoothing": 0, "floor": 0.2})


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_datasets(n):
    model = Model()
    make_trainer(ImportanceSampling(0.9, seed=0), max_epochs=3).fit(model, make_loader(n, batch_size=1))
    assert model.epoch_batches(3) == [n, 1, 1]


def test_ratio_zero_keeps_everything_unweighted():
    model = Model()
    trainer = make_trainer(ImportanceSampling(0.0, seed=0), max_epochs=3)
    trainer.fit(model, make_loader())
    assert model.epoch_batches(3) == [10] * 3
    assert registry_of(trainer).selection.weights is None


BAD = [
    ({"prune_ratio": 1.0}, r"`prune_ratio` to be a number in \[0, 1\), but got 1.0"),
    ({"smoothing": 1.0}, r"`smoothing` to be a number in \[0, 1\), but got 1.0"),
    ({"floor": -0.1}, r"`floor` to be a number in \[0, 1\], but got -0.1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImportanceSampling(**arguments)


def test_bad_rule_input():
    with pytest.raises(ValueError, match="`importance` >= 0, but got -1.0"):
        importance_inclusion(torch.tensor([1.0, -1.0]), 1)
    with pytest.raises(ValueError, match="`num_keep` to be an int >= 1 and <= 2, but got 3"):
        importance_inclusion(torch.ones(2), 3)
    with pytest.raises(TypeError, match="`importance` to be a floating-point tensor"):
        importance_inclusion(torch.arange(2), 1)
    for bad in (1.5, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"`inclusion` in \[0, 1\]"):
            systematic_sample(torch.tensor([0.5, bad]))


def grads_with_a_rare_class():
    """Gradients of 200 samples by 4 outputs, the last of which only five samples move."""
    grads = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    grads[:, 3] = 0
    grads[:5, 3] = 0.01
    return grads


def test_multiple_importance_against_a_loop():
    grads = grads_with_a_rare_class()
    grads[7, 2] = torch.nan
    rows = [row for i, row in enumerate(grads.tolist()) if i != 7]
    totals = [sum(abs(row[c]) for row in rows) for c in range(4)]
    expected = [199 / 4 * sum(abs(row[c]) / totals[c] for c in range(4)) for row in rows]
    found = multiple_importance(grads)
    assert bool(found[7].isnan())
    assert found[torch.arange(200) != 7].tolist() == pytest.approx(expected, rel=1e-5)
    assert sum(expected) == pytest.approx(199)


def test_the_balance_heuristic_is_unbiased_and_steadier():
    """Exact variances under independent draws: that of the rare output falls against draws by the norm."""
    grads = grads_with_a_rare_class()
    chances = {
        "norm": importance_inclusion(grads.norm(dim=1), 40),
        "multiple": importance_inclusion(multiple_importance(grads), 40),
    }
    spread = {}
    for name, pi in chances.items():
        assert float(pi.sum()) == pytest.approx(40)
        spread[name] = (grads.double().square() * (1 / pi - 1)[:, None]).sum(0)
    assert float(spread["multiple"][3]) < 0.5 * float(spread["norm"][3])
    generator, draws = torch.Generator().manual_seed(1), []
    for _ in range(3000):
        ids = systematic_sample(chances["multiple"], generator=generator)
        draws.append((grads[ids].double() / chances["multiple"][ids, None]).sum(0))
    draws = torch.stack(draws)
    error = (draws.std(0) / 3000**0.5).clamp(min=1e-9)  # the rare samples are in every draw
    assert float(((draws.mean(0) - grads.double().sum(0)) / error).abs().max()) < 5


def test_a_run_with_one_distribution_for_each_output():
    checked = []

    class Check(ImportanceSampling):
        def on_epoch_recorded(self, registry, record):
            old = registry.column("importance").clone()
            super().on_epoch_recorded(registry, record)
            new = torch.stack([record.extra[f"importance_{c}"] for c in range(2)])
            moved = torch.where(old[:, record.indices].isnan(), new, 0.3 * old[:, record.indices] + 0.7 * new)
            torch.testing.assert_close(registry.column("importance")[:, record.indices], moved)
            checked.append(len(record.indices))

    make_trainer(Check(0.5, num_outputs=2, seed=0), max_epochs=4).fit(Model(), make_loader())
    assert checked == [40, 20, 20, 20]


def test_outputs_that_are_not_those_of_the_logits():
    with pytest.raises(ValueError, match="`num_outputs=2`, as the logits have, but got 5"):
        make_trainer(ImportanceSampling(num_outputs=5)).fit(Model(), make_loader())
    with pytest.raises(ValueError, match="`num_outputs` to be an int >= 2"):
        ImportanceSampling(num_outputs=1)
    with pytest.raises(ValueError, match=r"shape \(n, C\)"):
        multiple_importance(torch.ones(3))
    with pytest.raises(TypeError, match="floating-point"):
        multiple_importance(torch.ones(3, 2, dtype=torch.int64))
