"""RePB: windows, coins, attendance weights, the law of its size, and the run that it makes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import RePB, ScoreRegistry
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.rng import make_generator
from lightning_prune.functional import ctr_weights, repb_resample, repb_retain
from lightning_prune.methods.repb import below_window_mean, window_inclusion
from tests.helpers import BareModel, Model, make_loader, make_trainer, registry_of
from tests.reference import repb as reference
from tests.reference.golden import GOLDEN


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", GOLDEN["repb"]["windows"], ids=str)
def test_golden_windows(case, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, generator, dtype: torch.tensor(case["U"]))
    scores, ratio = torch.tensor(case["scores"], dtype=torch.float32), case["rho"]
    windows = torch.zeros(len(scores), dtype=torch.int64)
    if ratio == 1:
        assert (~below_window_mean(scores, windows)).nonzero().squeeze(1).tolist() == case["retained"]
    else:
        assert repb_retain(scores, windows, ratio).nonzero().squeeze(1).tolist() == case["retained"]


@pytest.mark.parametrize("case", GOLDEN["repb"]["ctr"], ids=lambda case: str(case["weights_for_epoch"]))
def test_golden_weights(case):
    epoch = case["weights_for_epoch"] - 1
    expected = [float(Fraction(w)) for w in case["w"]]
    assert ctr_weights(torch.tensor(case["N"]), epoch).tolist() == pytest.approx(expected)
    assert reference.weights(GOLDEN["repb"]["membership_rows_epochs_1_to_5"][:epoch]) == expected


floats = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=100)
@given(st.lists(st.tuples(floats, st.integers(0, 3)), min_size=1, max_size=20), st.sampled_from([0.0, 0.3, 0.9]))
def test_retain_against_the_loop(pairs, ratio):
    scores, windows = (list(column) for column in zip(*pairs, strict=True))
    scores = torch.tensor(scores, dtype=torch.float32)
    kept = repb_retain(scores, torch.tensor(windows), ratio, generator=generator(3)).nonzero().squeeze(1).tolist()
    coins = torch.rand(len(pairs), generator=generator(3)).tolist()
    assert kept == reference.retain(scores.tolist(), windows, ratio, coins)


def test_equal_losses_are_never_below():
    """In float32 the mean of these lies above all of them."""
    scores = torch.full((50_000,), 2.302585)
    assert not bool(below_window_mean(scores, torch.zeros(50_000, dtype=torch.int64)).any())


def test_absentees_return_with_one_minus_ratio():
    trained = torch.arange(40_000) % 2 == 0
    back = repb_resample(trained, 0.7, generator=generator())
    assert not bool((back & trained).any())
    assert abs(int(back.sum()) - 6000) <= 5 * math.sqrt(20_000 * 0.21)


def test_retained_share_and_independence():
    """Of 20,000 below their mean, 1 - r stay; neighbours decide independently; z <= 5."""
    scores, windows = torch.tensor([0.0, 1.0]).repeat(20_000), torch.arange(40_000) // 20
    kept = repb_retain(scores, windows, 0.3, generator=generator())[::2].double()
    assert abs(float(kept.mean()) - 0.7) <= 5 * math.sqrt(0.21 / 20_000)
    both = (kept[1:] * kept[:-1]).mean()
    assert abs(float(both) - 0.49) <= 5 * math.sqrt(0.49 * 0.51 / 10_000)


class Simulation:
    """RePB's epochs without training: fixed scores, random batches."""

    def __init__(self, method, scores, batch_size, seed=0):
        self.method, self.batch_size, self.seed = method, batch_size, seed
        self.registry = ScoreRegistry()
        self.registry.allocate(len(scores), "cpu")
        self.registry.losses.copy_(scores)
        method.setup_columns(self.registry)
        self.sizes, self.lows, self.weights = [], [], []

    def run(self, epochs):
        registry = self.registry
        for epoch in range(epochs):
            chosen = self.method.select(registry, epoch, make_generator(self.seed, epoch, "select"))
            registry.take_selection(chosen)
            order = chosen.indices[torch.randperm(len(chosen), generator=make_generator(self.seed, epoch, "order"))]
            registry.counts[chosen.indices] += 1
            record = EpochRecord(order, registry.losses[order], None, self.batch_size, {})
            self.lows.append(int(below_window_mean(record.losses, record.steps // self.method.window_batches).sum()))
            self.sizes.append(len(chosen))
            self.weights.append(chosen.weights)
            self.method.on_epoch_recorded(registry, record)
        return self


@pytest.mark.parametrize("rule", ["mean", "importance"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_sizes_follow_the_law(ratio, rule):
    """E|D'| = m - r b + (1 - r)(n - m); with the mean rule the variance is r (1 - r)(b + n - m); the sum has z <= 5.

    The importance rule has the same expectation; each trained sample adds at most 1/4 to its variance.
    """
    n = 4000
    scores = torch.empty(n).exponential_(generator=generator(1))
    simulation = Simulation(RePB(ratio, rule=rule), scores, 50).run(60)
    residual = variance = 0.0
    for epoch in range(59):
        m, b = simulation.sizes[epoch], simulation.lows[epoch]
        residual += simulation.sizes[epoch + 1] - (m - ratio * b + (1 - ratio) * (n - m))
        variance += ratio * (1 - ratio) * (b + n - m) + (rule == "importance") * 0.25 * m
    assert abs(residual) <= 5 * math.sqrt(variance)
    share = sum(simulation.lows[20:]) / sum(simulation.sizes[20:])
    steady = (1 - ratio) / (1 - ratio + ratio * share)
    assert sum(simulation.sizes[20:]) / 40 / n == pytest.approx(steady, rel=0.02)


@pytest.mark.parametrize("case", GOLDEN["repb"]["steady"], ids=str)
def test_target_at_its_fixed_point_is_the_golden_ratio(case):
    n, kept = 10**6, case["steady_kept_fraction"]
    ratio = RePB(target_keep=kept)._ratio(n, round(n * kept), round(n * kept * case["beta"]))
    assert ratio == pytest.approx(case["rho"], rel=1e-4)


def test_attendance_of_a_two_state_chain():
    """One window: low samples attend (1-r)/(1-r+r), so 1/2 at r = 0.5, high ones always, with weight 1."""
    scores, epochs = torch.tensor([0.0] * 600 + [1.0] * 400), 200
    simulation = Simulation(RePB(0.5), scores, 1000).run(epochs)
    counts = simulation.registry.counts
    assert bool((counts[600:] == epochs).all())
    share = counts[:600].double().mean() / epochs
    assert abs(float(share) - 0.5) <= 5 * math.sqrt(0.25 / 600 / epochs) + 1 / epochs
    weights = simulation.weights[-1]
    assert float(weights.min()) == 1
    assert float(weights.max()) <= epochs


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9])
def test_target_is_reached_after_a_few_epochs(target):
    scores = torch.empty(20_000).exponential_(generator=generator(2))
    simulation = Simulation(RePB(target_keep=target), scores, 100).run(12)
    assert all(size / 20_000 == pytest.approx(target, rel=0.02) for size in simulation.sizes[4:])
    assert 0 < float(simulation.registry.state["repb_ratio"]) < 1


def test_target_with_equal_scores_keeps_everything():
    simulation = Simulation(RePB(target_keep=0.5), torch.ones(100), 10).run(4)
    assert simulation.sizes == [100] * 4


def test_ratio_zero_keeps_everything_with_weight_one():
    simulation = Simulation(RePB(0.0), torch.rand(100, generator=generator()), 10).run(4)
    assert simulation.sizes == [100] * 4
    assert all(bool((weights == 1).all()) for weights in simulation.weights[1:])


def test_max_weight():
    simulation = Simulation(RePB(0.9, max_weight=3.0), torch.arange(200.0), 20).run(30)
    assert max(float(weights.max()) for weights in simulation.weights[1:]) == 3.0


levels = st.floats(-1, 100, width=32) | st.sampled_from([math.nan, math.inf, 0.0, 1.0])


@settings(max_examples=100)
@given(st.lists(st.tuples(levels, st.integers(0, 3)), min_size=1, max_size=30), st.sampled_from([0.0, 0.4, 0.95]))
def test_importance_chances_against_the_loop(pairs, ratio):
    scores, windows = (list(column) for column in zip(*pairs, strict=True))
    chances = window_inclusion(torch.tensor(scores), torch.tensor(windows), ratio).double()
    expected = torch.tensor(reference.chances(scores, windows, ratio), dtype=torch.float64).float().double()
    assert float((chances - expected).abs().max()) <= 1e-12


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.floats(-1, 100, width=32) | st.just(math.nan), st.integers(0, 2)), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.4, 0.95]),
)
def test_importance_chances_add_up(pairs, ratio):
    scores, windows = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    chances = window_inclusion(scores, windows, ratio).double()
    low, finite = below_window_mean(scores, windows), scores.isfinite()
    assert bool(((chances >= 0) & (chances <= 1)).all())
    assert bool((chances[~finite] == 1).all())
    for window in set(windows.tolist()):
        inside = (windows == window) & finite
        expected = int(inside.sum()) - ratio * int((inside & low).sum())
        assert float(chances[inside].sum()) == pytest.approx(expected, abs=1e-4)
        order = scores[inside].clamp(min=0).argsort()
        assert bool((chances[inside][order].diff() >= -1e-6).all())


class GradModel(Model):
    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        logits = self.layer(x)
        return self.weighted_loss(F.cross_entropy(logits, y, reduction="none"), logits=logits, targets=y)


class Watch(RePB):
    """Compares the columns with what the plain loops say, after each epoch."""

    checked = 0

    def on_epoch_recorded(self, registry, record):
        super().on_epoch_recorded(registry, record)
        scores = record.extra.get("grad_norm", record.losses)
        windows = [position // (4 * self.window_batches) for position in range(len(record.indices))]
        stay = set(record.indices[reference.retain(scores.tolist(), windows, 1.0, [0.0] * len(windows))].tolist())
        chances = registry.column("repb_chance").tolist()
        assert {i for i, chance in enumerate(chances) if chance == 1.0} == stay
        assert set(chances) <= {1.0, 1 - self.prune_ratio}
        self.checked += 1


@pytest.mark.parametrize("window_batches", [1, 3])
@pytest.mark.parametrize(("score", "model"), [("loss", Model), ("grad_norm", GradModel)])
def test_fit(score, model, window_batches):
    method = Watch(0.75, window_batches, score, seed=0)
    trainer, module = make_trainer(method, max_epochs=6), model()
    trainer.fit(module, make_loader())
    assert method.checked == 6
    registry = registry_of(trainer)
    assert registry.counts.sum() < 6 * 40
    selection = registry.selection
    attended = registry.counts[selection.indices] - 1
    assert selection.weights.tolist() == pytest.approx((5 / attended).tolist())


def test_gradient_norm_is_the_distance_from_the_label():
    class Check(RePB):
        norms: dict[int, float] = {}

        def on_epoch_recorded(self, registry, record):
            self.norms |= dict(zip(record.indices.tolist(), record.extra["grad_norm"].tolist(), strict=True))

    model, loader = GradModel(), make_loader(batch_size=40)
    weight = model.layer.weight.detach().clone()
    make_trainer(Check(score="grad_norm"), max_epochs=1).fit(model, loader)
    x, y, _ = loader.dataset.tensors
    expected = ((x @ weight.T).softmax(1) - F.one_hot(y, 2)).norm(dim=1)
    assert [Check.norms[i] for i in range(40)] == pytest.approx(expected.tolist(), rel=1e-4)


def test_samples_without_a_record_stay():
    """Only 5 of 10 batches are trained: the others have no window, so they stay."""

    class Check(RePB):
        def on_epoch_recorded(self, registry, record):
            super().on_epoch_recorded(registry, record)
            chance = registry.column("repb_chance").clone()
            chance[record.indices] = 1.0
            absent = torch.ones(40, dtype=torch.bool)
            absent[registry.selection.indices] = False
            assert bool((chance[~absent] == 1).all())
            assert bool((chance[absent] == 0.5).all())

    make_trainer(Check(0.5, seed=0), max_epochs=3, limit_train_batches=5).fit(Model(), make_loader())


@pytest.mark.filterwarnings("ignore:.*limit_train_batches")
def test_what_a_limit_leaves_out_did_not_attend():
    """The weights are those of the epochs in which a sample was in a batch, which the model notes."""
    model, checked = Model(), []

    class Check(RePB):
        def select(self, registry, epoch, generator):
            selection = super().select(registry, epoch, generator)
            if epoch:
                trained = torch.zeros(40)
                for past in range(epoch):
                    trained[torch.tensor(model.epoch_ids(past))] += 1
                trained = trained[selection.indices]
                expected = torch.where(trained > 0, epoch / trained, 1)  # nothing is known yet of who never was
                torch.testing.assert_close(selection.weights, expected)
                checked.append(bool((registry.counts[selection.indices] > trained).any()))
            return selection

    make_trainer(Check(0.5, seed=0), max_epochs=5, limit_train_batches=6).fit(model, make_loader())
    assert checked == [True] * 4


def test_counts_above_the_epochs_weigh_less_than_one():
    assert ctr_weights(torch.tensor([8, 4, 1]), 4).tolist() == [0.5, 1.0, 4.0]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("masked", [(), (0,), (3, 17, 18, 19)])
def test_windows_are_the_steps_whatever_is_recorded(masked, drop_last):
    """A last batch that is dropped, and samples without a loss: the others keep the windows of their steps."""

    class Masked(Model):
        steps: list[list[int]] = []

        def training_step(self, batch, batch_idx):
            self.steps.append(batch[2].tolist())
            mask = torch.tensor([i not in masked for i in batch[2].tolist()])
            return self.weighted_loss(self.losses(batch), mask=mask)

    class Check(RePB):
        def on_epoch_recorded(self, registry, record):
            super().on_epoch_recorded(registry, record)
            windows, Masked.steps = [Masked.steps[i : i + 2] for i in range(0, len(Masked.steps), 2)], []
            losses = dict(zip(record.indices.tolist(), record.losses.tolist(), strict=True))
            low = set()
            for window in windows:
                ids = [i for step in window for i in step if i in losses]
                mean = math.fsum(losses[i] for i in ids) / len(ids)
                low |= {i for i in ids if losses[i] < mean}
            if registry.unanswered is not None:  # masked in a step, and never known
                low |= set(registry.unanswered.nonzero().squeeze(1).tolist())
            stay = set(registry.selection.indices.tolist()) - low
            assert {i for i, chance in enumerate(registry.column("repb_chance").tolist()) if chance == 1} == stay

    loader = make_loader(38, drop_last=drop_last)
    make_trainer(Check(0.5, window_batches=2, seed=0), max_epochs=4).fit(Masked(), loader)


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
def test_a_loss_that_is_not_finite_keeps_the_sample_with_weight_one():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            if self.current_epoch >= 3:
                self.weighted_loss(losses.where(batch[2] >= 20, math.nan))
            return self.weighted_loss(losses, record=self.current_epoch < 3)

    class Check(RePB):
        lightest = 9.0

        def select(self, registry, epoch, generator):
            selection = super().select(registry, epoch, generator)
            broken = ~registry.losses.isfinite()
            if epoch > 3:
                inside = broken[selection.indices]
                assert bool((selection.weights[inside] == 1).all())
                assert set(broken.nonzero().squeeze(1).tolist()) <= set(selection.indices.tolist())
                attended = registry.counts[selection.indices][inside]
                self.lightest = min(self.lightest, float(attended.min()) / epoch)
            return selection

    method = Check(0.75, seed=0)
    make_trainer(method, max_epochs=7).fit(Broken(), make_loader())
    assert method.lightest < 1  # some of them had been away, and would weigh more


def test_an_epoch_is_never_empty():
    """By the importance rule two samples of about one loss may both leave: then the likelier one is trained."""
    chances = window_inclusion(torch.tensor([1.0, 1.1]), torch.zeros(2, dtype=torch.int64), 0.9)
    assert float(chances.max()) < 0.6
    registry, method = ScoreRegistry(), RePB(0.9, rule="importance")
    registry.allocate(2, "cpu")
    method.setup_columns(registry)
    registry.counts.fill_(1)
    registry.column("repb_chance").copy_(chances)
    kept = [method.select(registry, 1, generator(seed)).indices.tolist() for seed in range(40)]
    assert sorted(map(tuple, set(map(tuple, kept)))) == [(0,), (0, 1), (1,)]
    both_leave = [torch.rand(2, generator=generator(seed)) >= chances for seed in range(40)]
    assert any(bool(leave.all()) for leave in both_leave)
    assert all(kept[seed] == [1] for seed in range(40) if bool(both_leave[seed].all()))


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_datasets(n):
    model = Model()
    make_trainer(RePB(0.9, seed=0), max_epochs=4).fit(model, make_loader(n, batch_size=1))
    assert model.epoch_batches(4)[0] == n
    assert min(model.epoch_batches(4)) >= 1


def test_the_log_has_the_ratio():
    trainer = make_trainer(RePB(target_keep=0.6, seed=0), max_epochs=3)
    trainer.fit(Model(), make_loader())
    assert 0 < float(trainer.callback_metrics["prune/repb_ratio"]) < 1


def test_gradient_norms_need_logits_and_targets():
    with pytest.raises(ValueError, match=r"no logits and no targets.*self.weighted_loss\(losses, logits=logits, tar"):
        make_trainer(RePB(score="grad_norm")).fit(BareModel(), make_loader())


def test_gradient_norms_need_class_ids_or_probabilities():
    class Both(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            return self.weighted_loss(losses, logits=self.layer(batch[0]), targets=torch.ones(len(losses), 2))

    with pytest.raises(ValueError, match="of probabilities, with rows that add up to 1"):
        make_trainer(RePB(score="grad_norm")).fit(Both(), make_loader())


BAD = [
    ({"prune_ratio": 1.0}, r"`prune_ratio` to be a number in \[0, 1\), but got 1.0"),
    ({"window_batches": 0}, "`window_batches` to be an int >= 1, but got 0"),
    ({"score": "el2n"}, r"`score` to be one of \['loss', 'grad_norm'\]"),
    ({"rule": "median"}, r"`rule` to be one of \['mean', 'importance'\]"),
    ({"target_keep": 0.0}, r"`target_keep` to be a number in \(0, 1\], but got 0.0"),
    ({"max_weight": 0.5}, "`max_weight` to be a number >= 1 or None, but got 0.5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RePB(**arguments)


def test_bad_rule_input():
    scores, windows = torch.rand(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="`window_ids` to have the shape"):
        repb_retain(scores, windows[:2], 0.5)
    with pytest.raises(ValueError, match="`window_ids` >= 0, but got -1"):
        repb_retain(scores, windows - 1, 0.5)
    with pytest.raises(TypeError, match="`window_ids` to be an int64 tensor"):
        repb_retain(scores, windows.float(), 0.5)
    with pytest.raises(TypeError, match="`trained` to be a bool tensor"):
        repb_resample(scores, 0.5)
    with pytest.raises(ValueError, match=r"`prune_ratio` to be a number in \[0, 1\)"):
        repb_resample(windows == 0, 1.0)
    with pytest.raises(ValueError, match="`counts` >= 1, but got 0: a sample that no epoch has trained"):
        ctr_weights(torch.tensor([0, 4]), 3)
