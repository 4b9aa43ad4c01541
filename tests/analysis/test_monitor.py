"""What `PruningMonitor` logs is what can be recomputed by hand, and the training does not notice it."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Subset

from lightning_prune import (
    InfoBatch,
    OrderDP,
    PruningCallback,
    PruningMonitor,
    RandomPruning,
    RePB,
    ScoreRegistry,
    SeTa,
)
from lightning_prune.analysis import gradient_alignment, jaccard, sample_gradients
from lightning_prune.analysis.monitor import dataset_column
from lightning_prune.cli import main
from lightning_prune.core.plan import Selection
from tests.helpers import Keep, Model, PlainModel, make_dataset, make_loader, make_trainer, registry_of


class Recorded(Model):
    """Keeps each epoch's selection, counts and losses, as the hook of the module sees them."""

    def on_train_start(self):
        self.epochs = []

    def on_train_epoch_end(self):
        registry = registry_of(self.trainer)
        selection = registry.selection
        self.epochs.append((selection.indices.clone(), registry.counts.clone(), registry.losses.clone()))


def flipped_set(num_samples=40):
    data = make_dataset(num_samples)
    data.wrong = (torch.arange(num_samples) % 4 == 0).numpy()
    data.truth = torch.where(torch.from_numpy(data.wrong), 1 - data.tensors[1], data.tensors[1]).tolist()
    return data


def fit(*callbacks, model=None, data=None, **kwargs):
    torch.manual_seed(5)
    model = Recorded(dropout=0.3) if model is None else model
    trainer = make_trainer(*callbacks, **kwargs)
    trainer.fit(model, DataLoader(data or flipped_set(), 4, shuffle=True))
    return trainer, model


METHODS = {
    "infobatch": lambda: InfoBatch(seed=1),
    "orderdp": lambda: OrderDP(seed=1),
    "repb": lambda: RePB(seed=1),
    "seta": lambda: SeTa(seed=1),
    "random": lambda: RandomPruning(0.4, seed=1),
    "none": lambda: ScoreRegistry(),
}


@pytest.mark.parametrize("name", METHODS)
def test_values_are_those_of_the_run(name):
    monitor = PruningMonitor(targets=1, flipped="wrong")
    data = flipped_set()
    trainer, model = fit(monitor, METHODS[name](), data=data)
    assert [values["epoch"] for values in monitor.history] == [0, 1, 2, 3]
    labels = data.tensors[1]
    for epoch, (values, (selected, counts, losses)) in enumerate(zip(monitor.history, model.epochs, strict=True)):
        if epoch:
            assert values["jaccard"] == jaccard(selected, model.epochs[epoch - 1][0])
        else:
            assert "jaccard" not in values
        assert values["usage_mean"] == pytest.approx(float(counts.double().mean()))
        assert (values["usage_min"], values["usage_max"]) == (int(counts.min()), int(counts.max()))
        assert values["unused_fraction"] == float((counts == 0).double().mean())
        assert values["loss_mean"] == pytest.approx(float(losses[losses.isfinite()].double().mean()))
        assert values["noise_ratio"] == pytest.approx(np.mean(data.wrong[selected.numpy()]))
        shares = [float((labels[selected] == c).sum() / (labels == c).sum()) for c in (0, 1)]
        assert [values["class_kept/0"], values["class_kept/1"]] == pytest.approx(shares)
        assert (values["class_kept_min"], values["class_kept_max"]) == pytest.approx((min(shares), max(shares)))
    for key, value in monitor.history[-1].items():
        if key != "epoch":
            assert float(trainer.callback_metrics[f"prune/{key}"]) == pytest.approx(value, abs=1e-6), key


def test_clean_targets_are_a_flip_mask():
    by_mask, by_labels = PruningMonitor(flipped="wrong"), PruningMonitor(targets=1, clean_targets="truth")
    fit(by_mask, OrderDP(seed=1))
    fit(by_labels, OrderDP(seed=1))
    ratios = [[values["noise_ratio"] for values in monitor.history] for monitor in (by_mask, by_labels)]
    assert ratios[0] == ratios[1]
    assert len(set(ratios[0])) > 1


class Norms(Recorded):
    """Has BatchNorm statistics and dropout, which a careless extra pass would change."""

    def __init__(self):
        super().__init__(dropout=0.3)
        self.norm = torch.nn.BatchNorm1d(8)

    def losses(self, batch):
        x, y, index = batch
        self.seen.append((self.current_epoch, index.tolist()))
        return F.cross_entropy(self.layer(self.dropout(self.norm(x))), y, reduction="none")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_does_not_notice(precision):
    def run(*monitors):
        random.seed(0)
        np.random.seed(0)
        trainer, model = fit(OrderDP(seed=1), *monitors, model=Norms(), precision=precision)
        model.seen = []  # the gradient's passes are in it, too
        rngs = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        return trainer, model, rngs

    monitor = PruningMonitor(targets=1, flipped="wrong", gradient_every_n_epochs=1, gradient_samples=13)
    (plain_trainer, plain, rng), (trainer, watched, other_rng) = run(), run(monitor)
    assert all("grad_cosine" in values for values in monitor.history)
    assert rng == other_rng
    for key, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key
    for a, b in zip(*(t.optimizers[0].state_dict()["state"].values() for t in (plain_trainer, trainer)), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    for a, b in zip(plain.epochs, watched.epochs, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[2].nan_to_num(-1), b[2].nan_to_num(-1))
    assert all(module.training for module in watched.modules())
    assert all(
        p.grad is None or torch.equal(p.grad, q.grad)
        for p, q in zip(watched.parameters(), plain.parameters(), strict=True)
    )


def test_gradients_are_those_of_autograd():
    """On all samples: pruned = weighted mean over the selected, full = mean over all, at the same weights."""
    found = {}

    class Compare(Recorded):
        def on_train_epoch_end(self):
            registry = registry_of(self.trainer)
            loader = registry.planned_loader.original
            ids = torch.arange(40)
            found["pair"] = sample_gradients(self.trainer, self, loader, ids, registry.selection, seed=0)
            x, y, _ = loader.dataset.tensors
            losses = F.cross_entropy(self.layer(x), y, reduction="none")
            kept = registry.selection.indices
            for name, loss in (("pruned", (1.5 * losses[kept]).mean()), ("full", losses.mean())):
                grads = torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
                found[name] = torch.cat([grad.flatten() for grad in grads])

    monitor = PruningMonitor(gradient_every_n_epochs=2, gradient_samples=40)
    fit(monitor, Keep(0.5, weight=1.5), model=Compare(dropout=0.5), max_epochs=2)
    pruned, full = found["pair"]
    assert torch.allclose(pruned, found["pruned"], atol=1e-6)
    assert torch.allclose(full, found["full"], atol=1e-6)
    cosine, ratio = gradient_alignment(found["pruned"], found["full"])
    assert "grad_cosine" not in monitor.history[0]
    assert monitor.history[1]["grad_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert monitor.history[1]["grad_norm_ratio"] == pytest.approx(ratio, abs=1e-5)
    assert monitor.history[1]["grad_norm"] == pytest.approx(float(found["full"].norm()), abs=1e-5)
    assert cosine < 0.99


def test_class_weights_are_part_of_the_gradient():
    found, weight = {}, torch.tensor([0.2, 5.0])

    class Weighted(Model):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(self.losses(batch), sample_weight=weight[batch[1]])

        def on_train_epoch_end(self):
            registry = registry_of(self.trainer)
            loader = registry.planned_loader.original
            ids = torch.arange(40)
            found["pair"] = sample_gradients(self.trainer, self, loader, ids, registry.selection, seed=0)
            x, y, _ = loader.dataset.tensors
            losses = weight[y] * F.cross_entropy(self.layer(x), y, reduction="none")
            for name, kept in (("pruned", registry.selection.indices), ("full", ids)):
                grads = torch.autograd.grad(losses[kept].mean(), list(self.parameters()), retain_graph=True)
                found[name] = torch.cat([grad.flatten() for grad in grads])

    fit(Keep(0.5), model=Weighted(), max_epochs=1)
    pruned, full = found["pair"]
    assert torch.allclose(pruned, found["pruned"], atol=1e-5)
    assert torch.allclose(full, found["full"], atol=1e-5)


def test_full_selection_has_the_full_gradient():
    monitor = PruningMonitor(gradient_every_n_epochs=1, gradient_samples=7)
    fit(monitor, max_epochs=2)
    for values in monitor.history:
        assert values["grad_cosine"] == pytest.approx(1)
        assert values["grad_norm_ratio"] == pytest.approx(1)
    assert monitor.history[1]["jaccard"] == 1


def test_nothing_selected_among_the_samples_is_nan():
    seen = {}

    class Ask(Recorded):
        def on_train_epoch_end(self):
            loader = registry_of(self.trainer).planned_loader.original
            picked = Selection(torch.tensor([1]))
            seen["pair"] = sample_gradients(self.trainer, self, loader, torch.tensor([5, 6]), picked, seed=0)

    fit(Keep(0.5), model=Ask(), max_epochs=1)
    assert bool(seen["pair"][0].isnan().all())
    assert bool(seen["pair"][1].isfinite().all())


@pytest.mark.parametrize(("point", "first"), [("end-epoch=1", {2}), ("step=13", {1}), ("step=17", {1, 2})])
def test_resumed_monitor_logs_the_same(point, first, tmp_path):
    """Step 17 is the last batch of epoch 1: Lightning then skips its end, but did not before 2.5.1."""

    def run(folder, ckpt_path=None):
        every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        at_end = ModelCheckpoint(folder, "end-{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
        monitor = PruningMonitor(targets=1, gradient_every_n_epochs=1, gradient_samples=9)
        torch.manual_seed(3)
        trainer = make_trainer(InfoBatch(seed=1), monitor, every, at_end, enable_checkpointing=True)
        trainer.fit(Model(dropout=0.2), DataLoader(flipped_set(), 4, shuffle=True), ckpt_path=ckpt_path)
        return monitor.history

    whole = run(tmp_path / "a")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        resumed = run(tmp_path / "b", tmp_path / "a" / f"{point}.ckpt")
    assert resumed == whole[-len(resumed) :]
    assert resumed[0]["epoch"] in first


def test_checkpoint_is_small_and_safe(tmp_path):
    monitor = PruningMonitor()
    trainer, _ = fit(monitor, OrderDP(seed=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["PruningMonitor"]
    assert sum(bits.numel() for bits in state["selected"].values()) <= 2 * 40 // 8
    other = PruningMonitor()
    other.load_state_dict(state)
    assert torch.equal(other._selected[3], registry_of(trainer).selection.indices)


def test_columns_of_datasets():
    data = flipped_set()
    half = Subset(Subset(data, list(range(0, 40, 2))), [3, 1])
    assert dataset_column(half, 1).tolist() == data.tensors[1][[6, 2]].tolist()
    assert dataset_column(half, "wrong").tolist() == data.wrong[[6, 2]].tolist()
    with pytest.raises(MisconfigurationException, match="`TensorDataset` to hold 'labels'"):
        dataset_column(half, "labels")
    with pytest.raises(MisconfigurationException, match="to hold 3"):
        dataset_column(data, 3)
    with pytest.raises(
        MisconfigurationException, match=r"one value for each of its 40 samples, but got shape \(40, 8\)"
    ):
        dataset_column(data, 0)


def test_refusals_before_the_first_step():
    with pytest.raises(ValueError, match="`gradient_samples` to be an int >= 1"):
        PruningMonitor(gradient_samples=0)
    with pytest.raises(ValueError, match="`clean_targets` beside `targets`"):
        PruningMonitor(clean_targets="truth")
    with pytest.raises(ValueError, match="`clean_targets` beside `targets`"):
        PruningMonitor(targets=1, clean_targets="truth", flipped="wrong")
    model = PlainModel()
    with pytest.raises(MisconfigurationException, match="WeightedLossMixin"):
        make_trainer(RandomPruning(), PruningMonitor(gradient_every_n_epochs=1)).fit(model, make_loader())
    with pytest.raises(MisconfigurationException, match="to hold 'labels'"):
        make_trainer(PruningMonitor(targets="labels"), OrderDP()).fit(Model(), make_loader())
    assert not model.seen


def test_module_without_the_mixin():
    method = RandomPruning(0.5, seed=0)
    method.needs_mixin = False
    monitor = PruningMonitor()
    make_trainer(monitor, method).fit(PlainModel(), make_loader())
    assert len(monitor.history) == 4
    assert np.isnan(monitor.history[0]["loss_mean"])
    assert monitor.history[0]["usage_mean"] == 0.5


@pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse
def test_from_yaml(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "config.yaml").write_text(
        """
seed_everything: 0
trainer: {max_epochs: 2, accelerator: cpu, enable_checkpointing: false, limit_train_batches: 3,
          logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: LOGS}},
          callbacks: [{class_path: InfoBatch}, {class_path: PruningMonitor, init_args: {targets: 1}}]}
model: {class_path: examples.digits.task.DigitsModel}
data: {class_path: examples.digits.task.DigitsData}
""".replace("LOGS", str(tmp_path))
    )
    main(["fit", "--config", str(tmp_path / "config.yaml")])
    header = next(tmp_path.glob("**/metrics.csv")).read_text().splitlines()[0]
    assert "prune/jaccard" in header
    assert "prune/class_kept/9" in header


class WithoutAClass(PruningCallback):
    """Leaves out a class, or one sample in turn, after the first epoch."""

    def __init__(self, label=None, **kwargs):
        super().__init__(warmup_epochs=1, **kwargs)
        self.label = label

    def select(self, registry, epoch, generator):
        targets = make_loader().dataset.tensors[1]
        kept = targets != self.label if self.label is not None else torch.arange(40) % 4 == epoch % 4
        return Selection.from_mask(kept)


def test_a_class_that_is_left_out_for_long_is_warned_about():
    trainer = make_trainer(WithoutAClass(1), PruningMonitor(targets=1), max_epochs=9)
    size = int((make_loader().dataset.tensors[1] == 1).sum())
    match = rf"No sample of 1 class\(es\) was selected in the 5 epochs up to epoch 5: 1 \({size} samples\)"
    with pytest.warns(UserWarning, match=match) as warned:
        trainer.fit(Model(), make_loader())
    assert sum("No sample of" in str(w.message) for w in warned) == 1


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_epochs_without_a_class_are_counted_over_a_resume(tmp_path):
    saver = ModelCheckpoint(tmp_path, "end")
    trainer = make_trainer(WithoutAClass(0), PruningMonitor(targets=1), saver, enable_checkpointing=True)
    trainer.fit(Model(), make_loader())
    with pytest.warns(UserWarning, match="up to epoch 5: 0 "):
        make_trainer(WithoutAClass(0), PruningMonitor(targets=1), max_epochs=6).fit(
            Model(), make_loader(), ckpt_path=tmp_path / "end.ckpt"
        )


def test_classes_that_come_and_go_are_no_matter():
    make_trainer(WithoutAClass(), PruningMonitor(targets=1), max_epochs=9).fit(Model(), make_loader())
