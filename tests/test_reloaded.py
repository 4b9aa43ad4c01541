"""`reload_dataloaders_every_n_epochs` with a dataset of another length: it may grow, and may not shrink."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_prune import AlignPrune, InfoBatch, RePB, ScoreRegistry
from lightning_prune.analysis import PruningMonitor
from lightning_prune.core.plan import Selection
from lightning_prune.scoring import ScoreRecorder, StaticPruning
from lightning_prune.testing.processes import run_ranks
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of

GROWS = "The training dataset has grown"
pytestmark = pytest.mark.filterwarnings(f"ignore:{GROWS}", "ignore:.*callbacks used to create the checkpoint")


class Stages(LightningDataModule):
    """A dataset of another length in each epoch."""

    def __init__(self, *sizes, **kwargs):
        super().__init__()
        self.sizes, self.kwargs = sizes, kwargs

    def train_dataloader(self):
        return make_loader(self.sizes[min(self.trainer.current_epoch, len(self.sizes) - 1)], **self.kwargs)


class Watch(Callback):
    """Keeps what each epoch selects, trains and knows."""

    def __init__(self):
        self.selected: list[list[int]] = []
        self.losses: list[torch.Tensor] = []

    def on_train_epoch_end(self, trainer, pl_module):
        registry = registry_of(trainer)
        self.selected.append(registry.selected.nonzero().flatten().tolist())
        self.losses.append(registry.losses.clone())
        for i, loss in pl_module.true_losses.items():
            assert float(registry.losses[i]) == pytest.approx(loss, rel=1e-6)


def fit(data, *callbacks, ckpt_path=None, **kwargs):
    epochs = len(data.sizes)
    trainer = make_trainer(*callbacks, **{"max_epochs": epochs, "reload_dataloaders_every_n_epochs": 1, **kwargs})
    model = Model()
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer, model


def trained(model, epoch):
    return sorted(i for e, ids in model.seen if e == epoch for i in ids)


def test_new_samples_are_trained_and_unseen():
    watch = Watch()
    with pytest.warns(UserWarning, match=r"grown from 24 to 36 samples in the run. Ids below 24 are taken") as told:
        trainer, model = fit(Stages(24, 36, 36, 52), Keep(1.0, 0.5), watch)
    assert sum(GROWS in str(w.message) for w in told) == 1
    assert [len(losses) for losses in watch.losses] == [24, 36, 36, 52]
    assert trained(model, 0) == list(range(24))
    # unseen ones have no loss, and come first: 12 new ones, and the 6 of the highest losses
    hardest = watch.losses[0].argsort(descending=True, stable=True)[:6].tolist()
    assert trained(model, 1) == watch.selected[1] == sorted([*hardest, *range(24, 36)])
    assert trained(model, 2) == list(range(36))
    assert set(range(36, 52)) <= set(trained(model, 3))
    counts = registry_of(trainer).counts.tolist()
    assert counts == [sum(i in epoch for epoch in watch.selected) for i in range(52)]
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - (24 + 18 + 36 + 26) / (24 + 36 + 36 + 52))


def test_columns_grow_by_what_they_were_declared_with():
    class Declares(Keep):
        def setup_columns(self, registry):
            registry.add_column("chance", fill=1.0)
            registry.add_column("window", fill=torch.nan, slots=3)
            registry.add_column("chosen", fill=True, dtype=torch.bool)
            registry.add_column("count", dtype=torch.int32)

        def on_epoch_recorded(self, registry, record):
            for name in ("chance", "window", "count"):
                registry.column(name).fill_(7)
            registry.column("chosen").fill_(False)
            self.known = {name: registry.column(name).clone() for name in ("chance", "window", "chosen", "count")}

        def select(self, registry, epoch, generator):
            self.found = {name: registry.column(name).clone() for name in ("chance", "window", "chosen", "count")}
            return Selection.all(registry.num_samples)

    method = Declares(1.0)
    fit(Stages(24, 36), method)
    found = method.found
    assert found["chance"].tolist() == [7.0] * 24 + [1.0] * 12
    assert found["window"].shape == (3, 36)
    assert bool((found["window"][:, :24] == 7).all())
    assert bool(found["window"][:, 24:].isnan().all())
    assert found["chosen"].tolist() == [False] * 24 + [True] * 12
    assert found["count"].tolist() == [7] * 24 + [0] * 12


METHODS = {
    "Keep": lambda: Keep(1.0, 0.5, 0.75, weight=2.0),
    "InfoBatch": InfoBatch,
    "AlignPrune": lambda: AlignPrune(InfoBatch(), window=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_resumed_runs_are_the_same(name, tmp_path):
    """From an epoch's end, its middle and its last batch, before the dataset grew, and after."""
    sizes, watch = (24, 36, 36, 52), Watch()
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    at_end = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    trainer, model = fit(Stages(*sizes), METHODS[name](), watch, checkpoint, at_end, enable_checkpointing=True)
    whole = registry_of(trainer).to_dict()
    assert len(whole["losses"]) == 52
    lengths = model.epoch_batches(4)
    ends = [sum(lengths[: e + 1]) for e in range(4)]
    places = {f"step={step}": step for step in (2, ends[0], ends[0] + 2, ends[1], ends[2], ends[3] - 2)}
    places |= {f"epoch={epoch}": ends[epoch] for epoch in range(3)}
    for place, step in places.items():
        resumed, again = fit(Stages(*sizes), METHODS[name](), ckpt_path=tmp_path / f"{place}.ckpt")
        assert again.seen == model.seen[step:], place
        for column, values in registry_of(resumed).to_dict().items():
            assert torch.equal(values.nan_to_num(-1), whole[column].nan_to_num(-1)), (place, column)
        assert registry_of(resumed).saved_fraction == registry_of(trainer).saved_fraction


def test_a_finished_run_goes_on_with_more_samples(tmp_path):
    """Only where the Trainer reloads; else a longer dataset is another one."""
    trainer, _ = fit(Stages(24, 24), InfoBatch())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = Stages(24, 24, 36)
    with pytest.raises(MisconfigurationException, match="training dataset of 24 samples .* but got 36"):
        fit(data, InfoBatch(), ckpt_path=tmp_path / "last.ckpt", reload_dataloaders_every_n_epochs=0)
    resumed, model = fit(data, InfoBatch(), ckpt_path=tmp_path / "last.ckpt")
    assert registry_of(resumed).num_samples == 36
    assert set(range(24, 36)) <= set(trained(model, 2))


def test_fewer_samples_are_refused():
    with pytest.raises(MisconfigurationException, match="of 36 samples that .* or a longer one, but got 24 in epoch 1"):
        fit(Stages(36, 24), InfoBatch())


KNOWING = {
    "StaticPruning": lambda: StaticPruning(torch.arange(24.0), 0.5),
    "ScoreRecorder": lambda: ScoreRecorder("EL2N"),
    "PruningMonitor": lambda: PruningMonitor(targets=1),
    "AlignPrune": lambda: AlignPrune(Fixed()),
}


class Fixed(Keep):
    takes_new_samples = False

    def __init__(self):
        super().__init__(0.5)


@pytest.mark.filterwarnings("ignore:AlignPrune.window=25. ranks by alignment only once")
@pytest.mark.parametrize("make", [RePB, lambda: AlignPrune(RePB())])
def test_attendance_counts_from_when_a_sample_is_there(make):
    class Weights(Watch):
        def on_train_epoch_start(self, trainer, pl_module):
            selection = registry_of(trainer).selection
            weights = dict(zip(selection.indices.tolist(), weights_of(selection), strict=True))
            self.weights = [*getattr(self, "weights", []), weights]

    watch, sizes = Weights(), (24, 24, 36, 36, 52, 52, 52)
    fit(Stages(*sizes), make(), watch)
    joined = [next(epoch for epoch, size in enumerate(sizes) if i < size) for i in range(52)]
    for epoch, weights in enumerate(watch.weights):
        assert sorted(weights) == watch.selected[epoch]
        assert {i for i in range(52) if joined[i] == epoch} <= set(weights)  # new ones are trained
        for i, weight in weights.items():
            attended = sum(i in earlier for earlier in watch.selected[:epoch])
            expected = (epoch - joined[i]) / attended if attended else 1.0
            assert weight == pytest.approx(expected, rel=1e-6)
    assert len(watch.weights[-1]) < 52


def weights_of(selection):
    return [1.0] * len(selection) if selection.weights is None else selection.weights.tolist()


@pytest.mark.filterwarnings("ignore:AlignPrune.window=25. ranks by alignment only once", "ignore:Scores are recorded")
@pytest.mark.parametrize("name", KNOWING)
def test_who_must_know_each_sample_from_the_start_takes_in_no_more(name):
    message = f"of 24 samples that {name} was set up for, but got 36 in epoch"
    callback = KNOWING[name]()
    with pytest.raises(MisconfigurationException, match=message):
        fit(Stages(24, 36, *[36] * 20), callback)


def test_the_same_length_is_nothing_new():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", GROWS)
        _, model = fit(Stages(24, 24, 24), Keep(1.0, 0.5))
    assert model.epoch_batches(3) == [6, 3, 6]


def run_rank(rank, folder):
    """Be one of two ranks."""
    trainer, model = fit(Stages(24, 37, 37), InfoBatch(), strategy="ddp", devices=2)
    registry = ScoreRegistry.of(trainer)
    torch.save({"seen": model.seen, "table": registry.to_dict()}, folder / f"{trainer.global_rank}.pt")


@pytest.mark.ddp
def test_two_processes(tmp_path):
    run_ranks(run_rank, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for column, values in first["table"].items():
        assert len(values) == 37
        assert torch.equal(values.nan_to_num(-1), second["table"][column].nan_to_num(-1)), column
    in_second = {i for found in (first, second) for epoch, ids in found["seen"] if epoch == 1 for i in ids}
    assert set(range(24, 37)) <= in_second
    assert not first["table"]["losses"].isnan().any()
