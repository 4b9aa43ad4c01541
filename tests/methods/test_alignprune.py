"""AlignPrune: the score against its formulas, the window, every kind of reference, and label noise that it removes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import AlignPrune, InfoBatch, OrderDP, RandomPruning, RePB, ScoreRegistry, SeTa, WeightedLossMixin
from lightning_prune.functional import alignment_score
from lightning_prune.scoring import StaticPruning, save_scores
from tests.helpers import Model, PlainModel, make_dataset, make_loader, make_trainer, registry_of
from tests.reference import alignprune as reference
from tests.reference.golden import GOLDEN

pytestmark = pytest.mark.filterwarnings("ignore:AlignPrune.window=")  # short runs are what is tested

CORRELATIONS = ("pearson", "spearman", "cosine", "dtw")
BASES = {
    "InfoBatch": lambda: InfoBatch(anneal_ratio=1.0),
    "SeTa": lambda: SeTa(anneal_ratio=1.0),
    "RePB": lambda: RePB(window_batches=5),
    "OrderDP": OrderDP,
}


# ---------------------------------------------------------------------------------------------------- the pure score


@pytest.mark.parametrize("name", GOLDEN["alignprune"]["cases"])
def test_golden_scores(name):
    case, ref = GOLDEN["alignprune"]["cases"][name], torch.tensor(GOLDEN["alignprune"]["ref"]).double()
    trajectory = torch.tensor(case["traj"]).double()[None]
    for correlation in ("pearson", "spearman", "cosine"):
        found = alignment_score(trajectory, ref, correlation=correlation)
        assert found.item() == pytest.approx(case[correlation], abs=1e-6)
    assert -alignment_score(trajectory, ref, correlation="dtw").item() == pytest.approx(case["dtw_z"], abs=2e-6)
    mask = torch.tensor([[True, False, True, False, True, True]])
    assert alignment_score(trajectory, ref, mask=mask).item() == pytest.approx(
        case["pearson_masked_drop_1_3"], abs=1e-6
    )
    held = trajectory.clone()
    held[:, 1], held[:, 3] = held[:, 0], held[:, 2]
    assert alignment_score(held, ref).item() == pytest.approx(case["pearson_locf_drop_1_3"], abs=1e-6)


values = st.floats(-4, 4).map(lambda x: round(x, 2))


@settings(max_examples=150)
@given(st.data(), st.integers(1, 8), st.integers(1, 5), st.sampled_from(CORRELATIONS), st.integers(2, 5))
def test_scores_against_the_loop(data, epochs, n, correlation, min_observed):
    """With masked, missing and infinite losses, ties, constants and an unknown reference."""
    rows = st.lists(values, min_size=epochs, max_size=epochs)
    x = np.array(data.draw(st.lists(rows, min_size=n, max_size=n)))
    y = np.array(data.draw(rows))
    flags = st.lists(st.booleans(), min_size=epochs, max_size=epochs)
    mask = np.array(data.draw(st.lists(flags, min_size=n, max_size=n)))
    x[data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, epochs - 1))] = data.draw(
        st.sampled_from([1.0, np.nan, np.inf])
    )
    y[data.draw(st.integers(0, epochs - 1))] = data.draw(st.sampled_from([1.0, np.nan]))
    expected = [reference.score(x[i], y, mask[i], correlation, min_observed) for i in range(n)]
    inputs = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(mask)
    copies = [tensor.clone() for tensor in inputs]
    found = alignment_score(*inputs[:2], correlation=correlation, mask=inputs[2], min_observed=min_observed)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor.nan_to_num(99), copy.nan_to_num(99))


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_a_mask_is_a_deletion(correlation):
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(50, 12, generator=source), torch.rand(12, generator=source)
    keep = torch.tensor([0, 1, 3, 4, 7, 9, 10])
    mask = torch.zeros(50, 12, dtype=torch.bool)
    mask[:, keep] = True
    masked = alignment_score(x, y, correlation=correlation, mask=mask)
    assert torch.allclose(masked, alignment_score(x[:, keep], y[keep], correlation=correlation), atol=2e-6)


def test_pearson_ignores_scale_and_shift_and_follows_the_sign():
    source = torch.Generator().manual_seed(1)
    x, y = torch.rand(200, 25, generator=source), torch.rand(25, generator=source)
    score = alignment_score(x, y)
    assert torch.allclose(alignment_score(3 * x + 7, y), score, atol=2e-6)
    assert torch.allclose(alignment_score(-2 * x + 1, y), -score, atol=2e-6)
    assert torch.allclose(alignment_score(x, 5 * y + 100), score, atol=1e-5)
    assert torch.allclose(alignment_score(x[:, :7], y[:7]), alignment_score(x[:, :7].flip(1), y[:7].flip(0)), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 1e-7, 0.1, 2.302585, 1e4])
def test_constants_score_zero(dtype, level):
    """Whose mean is not exact in floating point."""
    for epochs in (5, 25, 200):
        ramp = torch.arange(epochs, dtype=torch.float32)
        assert alignment_score(torch.full((2, epochs), level, dtype=dtype), ramp).tolist() == [0, 0]
        assert alignment_score(ramp[None], torch.full((epochs,), level)).tolist() == [0]
        assert alignment_score(torch.full((1, epochs), level), torch.full((epochs,), level)).tolist() == [0]
        mask = ramp[None] % 2 == 0
        assert alignment_score(torch.full((1, epochs), level), ramp, mask=mask).tolist() == [0]


def test_many_samples_are_scored_chunk_by_chunk():
    """Some chunks with gaps, some without; against float64 in one piece."""
    source = torch.Generator().manual_seed(2)
    x, y = torch.rand(20_000, 10, generator=source), torch.rand(10, generator=source)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[9000:9100, 3] = False
    found = alignment_score(x, y, mask=mask)
    for rows, keep in ((slice(0, 9000), range(10)), (slice(9000, 9100), [i for i in range(10) if i != 3])):
        expected = np.corrcoef(x[rows][:, list(keep)].double().numpy(), y[list(keep)].double().numpy())[-1, :-1]
        np.testing.assert_allclose(found[rows].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"trajectories": torch.zeros(3)}, ValueError, r"\(n, N\)"),
        ({"reference": torch.zeros(5)}, ValueError, r"\(3, 4\) and \(5,\)"),
        ({"trajectories": torch.zeros(3, 4).long()}, TypeError, "floating-point"),
        ({"mask": torch.ones(3, 4)}, TypeError, "bool"),
        ({"mask": torch.ones(4, 3).bool()}, ValueError, "shape"),
        ({"correlation": "kendall"}, ValueError, "spearman"),
        ({"min_observed": 1}, ValueError, "min_observed"),
    ],
)
def test_bad_inputs(kwargs, error, message):
    with pytest.raises(error, match=message):
        alignment_score(**{"trajectories": torch.zeros(3, 4), "reference": torch.zeros(4), **kwargs})


# --------------------------------------------------------------------------------------------------------- in a run


class Watch(AlignPrune):
    """Notes the losses of each epoch and what each epoch selected."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history, self.references, self.selections = [], [], []

    def select(self, registry, epoch, generator):
        selection = super().select(registry, epoch, generator)
        self.selections.append(selection)
        return selection

    def on_epoch_recorded(self, registry, record):
        row = torch.full((registry.num_samples,), torch.nan)
        row[record.indices] = record.losses
        self.history.append(row)
        super().on_epoch_recorded(registry, record)
        self.references.append(float(registry.state["align_reference"][registry.epoch % self.window]))


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("base", BASES)
def test_scores_in_a_run_are_those_of_the_recorded_window(base, correlation):
    """The ring wraps around after 4 epochs of 9; a sample's gaps are left out."""
    method = Watch(base=BASES[base](), window=4, min_observed=2, correlation=correlation)
    trainer = make_trainer(method, max_epochs=9)
    trainer.fit(Model(), make_loader())
    registry = registry_of(trainer)
    window = torch.stack(method.history[-4:], 1)
    dtype = torch.float64 if correlation == "pearson" else torch.float32  # that of the arithmetic in the run
    expected = alignment_score(
        window.to(dtype),
        torch.tensor(method.references[-4:], dtype=dtype),
        correlation=correlation,
        mask=~window.isnan(),
        min_observed=2,
    ).float()
    scores = registry.column("align_score")
    if correlation == "pearson":  # what varies less than rounding, beside the losses at the start, counts as constant
        largest = torch.stack(method.history).nan_to_num(0).amax(0)
        flat = window.nan_to_num(0).amax(1) < 1e-5 * largest
        assert flat.sum() < 8
        scores, expected = scores[~flat], expected[~flat]
    assert torch.equal(scores.isnan(), expected.isnan())
    assert torch.allclose(scores.nan_to_num(9), expected.nan_to_num(9), atol=2e-6)
    own = method.history[-1][~method.history[-1].isnan()].sort().values
    assert method.references[-1] == pytest.approx(float(own[: len(own) // 2].mean()), rel=1e-6)
    assert any(len(selection) < 40 for selection in method.selections[4:])


@pytest.mark.parametrize("base", BASES)
def test_falls_back_to_the_base_until_the_window_is_full(base):
    method, alone = Watch(base=BASES[base](), window=5), BASES[base]()
    trainers = [make_trainer(callback, max_epochs=5) for callback in (method, alone)]
    models = Model(), Model()
    for trainer, model in zip(trainers, models, strict=True):
        torch.manual_seed(0)
        trainer.fit(model, make_loader())
    assert models[0].seen == models[1].seen
    assert torch.equal(models[0].layer.weight, models[1].layer.weight)


def test_undecided_samples_are_kept_with_weight_one():
    method = Watch(base=InfoBatch(prune_ratio=0.9, anneal_ratio=1.0), window=4, min_observed=4)
    trainer = make_trainer(method, max_epochs=8)
    trainer.fit(Model(), make_loader())
    seen = torch.stack(method.history[:-1], 1)[:, -4:]
    undecided = seen.isnan().any(1)
    last = method.selections[-1]
    weights = dict(zip(last.indices.tolist(), last.weights.tolist(), strict=True))
    assert undecided.any()
    assert all(weights[i] == 1 for i in undecided.nonzero().squeeze(1).tolist())
    assert trainer.logged_metrics["prune/align_undecided"] > 0


def test_hold_repeats_the_last_loss():
    method = Watch(base=InfoBatch(prune_ratio=0.9, anneal_ratio=1.0), window=4, missing="hold")
    trainer = make_trainer(method, max_epochs=7)
    trainer.fit(Model(), make_loader())
    registry = registry_of(trainer)
    held = torch.stack(method.history, 1)
    for epoch in range(1, 7):
        held[:, epoch] = torch.where(held[:, epoch].isnan(), held[:, epoch - 1], held[:, epoch])
    ring = registry.column("align_losses")
    assert all(torch.equal(ring[epoch % 4], held[:, epoch]) for epoch in range(3, 7))
    assert not registry.column("align_score").isnan().any()


def test_rescale_false_leaves_the_weights_out_once_aligned():
    method = Watch(base=InfoBatch(anneal_ratio=1.0), window=3, rescale=False)
    make_trainer(method, max_epochs=6).fit(Model(), make_loader())
    assert all(selection.weights is not None for selection in method.selections[1:3])
    assert all(selection.weights is None for selection in method.selections[3:])
    assert min(len(selection) for selection in method.selections[3:]) < 40


class Noisy(WeightedLossMixin, PlainModel):
    """A small network on two clouds that are far apart, with some labels flipped."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    def training_step(self, batch, batch_idx):
        return self.weighted_loss(self.losses(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def noisy_data(n=400, share=0.3):
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    x = torch.randn(n, 8, generator=source) + 1.2 * (2 * labels[:, None] - 1)
    flipped = torch.rand(n, generator=source) < share
    return TensorDataset(x, torch.where(flipped, 1 - labels, labels), torch.arange(n)), flipped


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("base", ["InfoBatch", "RePB", "OrderDP"])
def test_mislabelled_samples_are_pruned(base, rescale):
    """30 % flipped labels: the base prefers them, alignment avoids them. Deterministic."""
    data, flipped = noisy_data()
    noise = []
    for method in (Noting(BASES[base]()), Noting(AlignPrune(BASES[base](), window=8, rescale=rescale))):
        torch.manual_seed(0)
        make_trainer(method.method, method, max_epochs=20).fit(Noisy(), DataLoader(data, 20, shuffle=True))
        noise.append(float(torch.stack([flipped[kept].float().mean() for kept in method.kept[10:]]).mean()))
    assert noise[0] > 0.36
    assert noise[1] < noise[0] - 0.08


def test_windows_of_seta_keep_wrong_labels_in_every_second_epoch():
    """Its window leaves out the least aligned group and the best aligned one by turns."""
    data, flipped = noisy_data()
    method = Noting(AlignPrune(BASES["SeTa"](), window=8))
    make_trainer(method.method, method, max_epochs=20).fit(Noisy(), DataLoader(data, 20, shuffle=True))
    shares = torch.stack([flipped[kept].float().mean() for kept in method.kept[10:]])
    without_least, without_best = sorted((float(shares[::2].mean()), float(shares[1::2].mean())))
    chance = float(flipped.float().mean())
    assert without_least < chance - 0.05
    assert without_best > chance + 0.05


class Noting(Callback):
    """Notes what each epoch of a method kept."""

    def __init__(self, method):
        self.method, self.kept = method, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.kept.append(registry_of(trainer).selection.indices)


# --------------------------------------------------------------------------------------------------------- reference


def test_reference_metric():
    method = Watch(base=InfoBatch(anneal_ratio=1.0), reference="val_loss", window=3)
    losses = []

    class Logging(Model):
        def on_validation_epoch_end(self):
            losses.append(float(self.trainer.callback_metrics["val_loss"]))

    trainer = make_trainer(method, max_epochs=5, num_sanity_val_steps=1)
    trainer.fit(Logging(), make_loader(), make_loader(shuffle=False))
    assert method.references == pytest.approx(losses[-5:])
    assert trainer.logged_metrics["prune/align_reference"] == pytest.approx(losses[-1])


def test_reference_metric_only_every_other_epoch():
    """Epochs without a reference loss are left out of every correlation."""
    method = Watch(base=InfoBatch(anneal_ratio=1.0), reference="val_loss", window=6, min_observed=2)
    trainer = make_trainer(method, max_epochs=6, check_val_every_n_epoch=2)
    trainer.fit(Model(), make_loader(), make_loader(shuffle=False))
    assert [math.isnan(value) for value in method.references] == [True, False] * 3
    window = torch.stack(method.history, 1)
    known = torch.tensor(method.references).isfinite()
    expected = alignment_score(window[:, known], torch.tensor(method.references)[known], mask=~window[:, known].isnan())
    assert torch.allclose(registry_of(trainer).column("align_score").nan_to_num(9), expected.nan_to_num(9), atol=2e-6)


@pytest.mark.parametrize("kind", ["file", "static"])
def test_reference_by_scores(kind, tmp_path):
    """A pseudo-clean set: what a static rule keeps of its scores."""
    path = str(tmp_path / "small.npz")
    save_scores(path, torch.arange(40.0).flip(0), method="SmallLoss", keep="low")
    reference = path if kind == "file" else StaticPruning(path, prune_ratio=0.9)
    method = Watch(base=InfoBatch(anneal_ratio=1.0), reference=reference, window=3)
    make_trainer(method, max_epochs=4).fit(Model(), make_loader())
    assert method.references[0] == pytest.approx(float(method.history[0][36:].mean()), rel=1e-6)


def test_a_missing_score_file_is_no_metric():
    with pytest.raises(ValueError, match=r"no file 'gone\.npz'. Make one by `lightning-prune score"):
        AlignPrune(InfoBatch(), reference="gone.npz")


def test_reference_indices():
    ids = [3, 17, 31]
    method = Watch(base=InfoBatch(anneal_ratio=1.0), reference=ids, window=3)
    make_trainer(method, max_epochs=3).fit(Model(), make_loader())
    assert method.references[0] == pytest.approx(float(method.history[0][ids].mean()), rel=1e-6)


class WithReference(Model):
    def __init__(self):
        super().__init__()
        self.expected = []

    def reference_dataloader(self):
        return make_loader(12, shuffle=False)

    def on_train_epoch_end(self):
        x, y, _ = make_dataset(12).tensors
        with torch.no_grad():
            self.expected.append(float(F.cross_entropy(self.layer(x), y)))


def test_reference_loader_of_the_module():
    method, model = Watch(base=InfoBatch(anneal_ratio=1.0), reference="loader", window=3), WithReference()
    trainer = make_trainer(method, max_epochs=4)
    trainer.fit(model, make_loader())
    assert method.references == pytest.approx(model.expected, rel=1e-5)
    assert trainer.global_step == sum(math.ceil(len(s) / 4) for s in [range(40), *method.selections[1:]])


def test_reference_loader_of_the_datamodule():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return make_loader()

        def reference_dataloader(self):
            return make_loader(8, shuffle=False)

    method = Watch(base=InfoBatch(), reference="loader", window=2)
    make_trainer(method, max_epochs=3).fit(Model(), datamodule=Data())
    assert all(math.isfinite(value) for value in method.references)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"base": "InfoBatch"}, TypeError, r"AlignPrune\(base=InfoBatch\(\)\)"),
        ({"base": RandomPruning()}, ValueError, "ranks by `registry.scores`"),
        ({"base": AlignPrune(InfoBatch())}, ValueError, "ranks by `registry.scores`"),
        ({"reference": []}, ValueError, "at least one index"),
        ({"reference": [1, -2]}, ValueError, "none negative"),
        ({"reference": [1.5]}, TypeError, "list of training indices"),
        ({"reference": ""}, ValueError, "name of a metric"),
        ({"window": 1}, ValueError, "window"),
        ({"correlation": "kendall"}, ValueError, "pearson"),
        ({"missing": "drop"}, ValueError, "mask"),
        ({"min_observed": 26}, ValueError, "min_observed"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        AlignPrune(**{"base": InfoBatch(), **kwargs})


def test_reference_index_out_of_range():
    with pytest.raises(ValueError, match=r"in \[0, 40\), but got 40"):
        make_trainer(AlignPrune(InfoBatch(), reference=[1, 40])).fit(Model(), make_loader())


def test_no_reference_loader():
    with pytest.raises(MisconfigurationException, match=r"reference_dataloader\(\)"):
        make_trainer(AlignPrune(InfoBatch(), reference="loader")).fit(Model(), make_loader())


def test_no_validation_loop():
    with pytest.raises(MisconfigurationException, match="validation loop that logs 'val_loss'"):
        make_trainer(AlignPrune(InfoBatch(), reference="val_loss")).fit(Model(), make_loader())


def test_metric_that_is_never_logged():
    trainer = make_trainer(AlignPrune(InfoBatch(), reference="valid_loss"))
    with pytest.raises(MisconfigurationException, match=r"'valid_loss'.*logged \['val_loss'\]"):
        trainer.fit(Model(), make_loader(), make_loader(shuffle=False))
    assert trainer.current_epoch == 0


def test_a_window_too_long_for_the_run_is_warned_of():
    with pytest.warns(UserWarning, match="in 5 of this run's 15 epochs"):
        make_trainer(AlignPrune(InfoBatch(), window=10), ScoreRegistry(), max_epochs=15, limit_train_batches=1).fit(
            Model(), make_loader()
        )


def test_a_constant_reference_is_warned_of_and_prunes_nothing():
    method = Watch(base=InfoBatch(anneal_ratio=1.0), reference="flat", window=2)

    class Flat(Model):
        def validation_step(self, batch, batch_idx):
            self.log("flat", 1.0)

    with pytest.warns(UserWarning, match="have not changed for 2 epochs, so nothing can follow them"):
        make_trainer(method, max_epochs=4).fit(Flat(), make_loader(), make_loader())
    assert len(method.selections[-1]) == 40
