"""Streams: ids come with the batch; what is left out has weight 0, or is dropped within the dataset."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune import (
    IES,
    Budget,
    DivBS,
    InfoBatch,
    PruningReport,
    RandomPruning,
    RHOLoss,
    ScoreRegistry,
    Selection,
    SelectiveBackprop,
)
from lightning_prune.analysis import PruningMonitor
from lightning_prune.core.checks import LoaderError
from lightning_prune.core.pruned_stream import pruned_streams
from lightning_prune.core.ratio import UnreachableError
from lightning_prune.data import PrunedStream
from lightning_prune.scoring import ScoreRecorder
from lightning_prune.testing.processes import run_ranks, skip_without_fork
from lightning_prune.testing.task import WeightedModel
from tests import contract
from tests.helpers import BareModel, Keep, Model, PlainModel, make_dataset, make_loader, make_trainer, registry_of
from tests.streams import IdModel, Stream, id_of, make_stream
from tests.test_hot_path import SYNCHRONISING, Recorder

EPOCHS = 4
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:Checkpoint directory",
    "ignore:Your `IterableDataset` has `__len__`",
)


def fit(loader, *callbacks, num_samples=40, repeats=False, model=None, quiet=True, ckpt_path=None, **kwargs):
    registry = ScoreRegistry(num_samples=num_samples, repeats=repeats)
    trainer, model = make_trainer(registry, *callbacks, **kwargs), model or IdModel()
    with warnings.catch_warnings():
        if quiet:
            warnings.filterwarnings("ignore", "Pruning saves no steps")
        trainer.fit(model, loader, ckpt_path=ckpt_path)
    return trainer, model


class Noting(IdModel):
    """Keeps each epoch's selection, the losses before it, and each step's ids and value."""

    def __init__(self):
        super().__init__()
        self.selections, self.before, self.values = [], [], []

    def on_train_epoch_start(self):
        registry = registry_of(self.trainer)
        self.selections.append(registry.selection)
        self.before.append(registry.losses.clone())

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.values.append(float(loss.detach()))
        return loss


def check_losses(trainer, *models):
    """Each recorded loss is the sample's own, of the last time that it was trained."""
    losses = {i: loss for model in models for i, loss in model.true_losses.items()}
    for i, loss in losses.items():
        assert float(registry_of(trainer).losses[i]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=repr)
def test_what_is_not_selected_is_dropped_within_the_dataset(kwargs):
    loader = make_stream(pruned=True, **kwargs)
    trainer, model = fit(loader, Keep(0.3, 1.0, 0.75), model=Noting(), max_epochs=3)
    registry, trained = registry_of(trainer), 0
    for epoch, selection in enumerate(model.selections):
        ids = model.epoch_ids(epoch)
        assert sorted(ids) == selection.indices.tolist()
        trained += len(ids)
    assert registry.saved_fraction == pytest.approx(1 - trained / (3 * 40))
    check_losses(trainer, model)
    assert loader.dataset.counts == (0, 0)  # left alone after the run: all pass again
    assert sorted(sample[2].item() for sample in loader.dataset) == list(range(40))
    assert trainer.train_dataloader is loader


@pytest.mark.parametrize("method", [Keep(1.0, 0.5, 0.75, weight=1.5), InfoBatch(0.5)], ids=repr)
def test_without_a_filter_what_is_not_selected_has_weight_0(method):
    trainer, _ = fit(make_stream(), method, model=Noting())
    registry = registry_of(trainer)
    assert registry.saved_fraction == 0  # all were read and trained
    assert trainer.callback_metrics["prune/kept_fraction"] == len(registry.selection) / 40
    assert trainer.global_step == EPOCHS * 10
    assert not registry.losses.isnan().any()


def test_the_value_of_a_step_with_weights_of_0():
    class Script(Noting):
        def losses(self, batch):
            return super().losses(batch) * 0 + batch[2].float() + 10 * self.current_epoch

    trainer, model = fit(make_stream(), Keep(1.0, 0.3, weight=2.0), model=Script(), max_epochs=2)
    selected = set(model.selections[1].indices.tolist())
    assert selected == set(range(28, 40))  # the highest losses
    for value, (epoch, ids) in list(zip(model.values, model.seen, strict=True))[10:]:
        assert epoch == 1
        assert value == pytest.approx(sum(2.0 * (i + 10) for i in ids if i in selected) / len(ids))
    expected = torch.tensor([i + (10.0 if i in selected else 0.0) for i in range(40)])
    assert torch.equal(registry_of(trainer).losses, expected)  # of those that were left out, the last one trained
    assert registry_of(trainer).counts.tolist() == [1 + (i in selected) for i in range(40)]


def test_a_loss_that_is_not_finite_does_no_harm_where_it_is_left_out():
    class Broken(Noting):
        def losses(self, batch):
            losses = super().losses(batch)
            return torch.where(batch[2] == 0, torch.nan, losses) if self.current_epoch else losses

    class Last(Keep):
        def select(self, registry, epoch, generator):
            return super().select(registry, epoch, generator) if epoch == 0 else Selection(torch.arange(1, 40))

    trainer, model = fit(make_stream(), Last(1.0), model=Broken(), max_epochs=2)
    assert all(value == value for value in model.values)
    assert not registry_of(trainer).losses.isnan().any()


def test_that_weights_of_0_save_nothing_is_said_once():
    with pytest.warns(UserWarning, match=r"saves no steps: of this stream.*weight 0.*PrunedStream") as told:
        fit(make_stream(), Keep(1.0, 0.5), quiet=False)
    assert sum("saves no steps" in str(w.message) for w in told) == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(make_stream(pruned=True), Keep(1.0, 0.5), quiet=False)
    assert not [w for w in told if "saves no steps" in str(w.message)]


class Scripted(WeightedModel):
    """Its losses depend on the sample and the epoch only; tells ids if it is to."""

    def __init__(self, told):
        super().__init__()
        self.told, self.selections = told, []

    def losses(self, batch):
        real = super().losses(batch)
        values = torch.rand(40, 4, generator=torch.Generator().manual_seed(self.current_epoch))[batch[2]]
        self.outputs |= {"logits": values[:, :2], "features": values[:, :3]}
        if self.told:
            self.outputs["indices"] = batch[2]
        return values[:, 3] + 0 * real

    def on_train_epoch_start(self):
        self.selections.append(registry_of(self.trainer).selection)


EPOCH_LEVEL = [
    case for case in contract.CASES if not contract.picks(case) and not contract.method_of(case).refreshes_losses
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", EPOCH_LEVEL)
def test_every_method_selects_as_from_a_map_style_dataset(case):
    """Given the same losses by id, in the same steps: with weights of 0, and with what is left out dropped."""
    assert len(EPOCH_LEVEL) > 12
    plain = make_trainer(contract.make(case))
    expected = Scripted(told=False)
    plain.fit(expected, make_loader(shuffle=False))
    for pruned in (False, True):
        if (case in contract.BY_BATCH | {"RePB"} or case.startswith("Budget")) and not pruned:
            continue  # who shares a step, and what is saved, is another matter where samples are left out by weight
        trainer, model = fit(make_stream(pruned=pruned, shuffle=False), contract.make(case), model=Scripted(told=True))
        for epoch, (ours, theirs) in enumerate(zip(model.selections, expected.selections, strict=True)):
            if case in contract.BY_BATCH and len(model.selections[epoch - 1]) % 4 == 1:
                break  # the plan moves a sample, so as to have no batch of one
            assert torch.equal(ours.indices, theirs.indices), epoch
            assert (ours.weights is None) == (theirs.weights is None)
            assert ours.weights is None or torch.equal(ours.weights, theirs.weights)
            assert pruned is False or sorted(model.epoch_ids(epoch)) == ours.indices.tolist()
        assert torch.equal(registry_of(trainer).counts, registry_of(plain).counts)
    assert registry_of(trainer).saved_fraction == pytest.approx(registry_of(plain).saved_fraction)


def test_a_budget_needs_a_stream_that_drops_samples():
    """Said before the first step; a method that picks within batches drops them itself."""
    model = IdModel()
    with pytest.raises(UnreachableError, match=r"Budget\(save=0.3\) would save no steps. Wrap the dataset: `lightn"):
        make_trainer(ScoreRegistry(num_samples=40), Budget(InfoBatch(), save=0.3)).fit(model, make_stream())
    assert not model.seen
    for method, pruned in ((Budget(InfoBatch(anneal_ratio=1.0), save=0.3), True), (Budget(DivBS(), save=0.3), False)):
        trainer = make_trainer(ScoreRegistry(num_samples=40), method, max_epochs=6)
        trainer.fit(IdModel(), make_stream(pruned=pruned))
        assert registry_of(trainer).saved_fraction == pytest.approx(0.3, abs=0.01 + 1 / 40)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("make", [lambda: SelectiveBackprop(0.5, start=0.2), lambda: DivBS(0.5)])
def test_methods_that_pick_within_the_batch_need_no_ids(make, pruned):
    trainer, model = make_trainer(make()), Model()
    trainer.fit(model, make_stream(pruned=pruned, num=42))
    trained = sum(len(ids) for _, ids in model.seen)
    assert trained < EPOCHS * 42
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - trained / (EPOCHS * 42))
    assert registry_of(trainer).num_samples == 0
    trainer, model = fit(make_stream(pruned=pruned), make())
    check_losses(trainer, model)  # where ids are told, losses are kept
    assert bool((registry_of(trainer).losses == registry_of(trainer).losses).any())


def test_rho_loss_looks_ids_up(tmp_path):
    irreducible = torch.linspace(0, 5, 40)
    np.save(tmp_path / "losses.npy", irreducible.numpy())
    trainer, model = fit(make_stream(shuffle=False), RHOLoss(0.5, tmp_path / "losses.npy"), max_epochs=1)
    assert all(len(ids) == 2 for _, ids in model.seen)
    assert registry_of(trainer).saved_fraction == 0.5
    check_losses(trainer, model)
    with pytest.raises(MisconfigurationException, match=r"ScoreRegistry\(num_samples=N\)"):
        make_trainer(RHOLoss(0.5, tmp_path / "losses.npy")).fit(IdModel(), make_stream())
    with pytest.raises(ValueError, match=r"indices=ids"):
        fit(make_stream(), RHOLoss(0.5, tmp_path / "losses.npy"), model=Model())


def test_modules_that_cannot_be_edited():
    """Of a filtered stream, a method that asks for no losses needs nothing of the module."""
    trainer, model = fit(make_stream(pruned=True), RandomPruning(0.5), model=PlainModel())
    assert [len(model.epoch_ids(epoch)) for epoch in range(EPOCHS)] == [20] * EPOCHS
    assert registry_of(trainer).saved_fraction == 0.5
    with pytest.raises(MisconfigurationException, match=r"`PlainModel` does not have it.*PrunedStream\(dataset, key="):
        fit(make_stream(), RandomPruning(0.5), model=PlainModel())


class Everywhere(Stream):
    """Each worker reads all of it: the usual mistake."""

    def __iter__(self):
        yield from (self.samples[i] for i in self.ids())


class Resampled(Stream):
    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        yield from (self.samples[i] for i in torch.randint(40, (40,), generator=generator).tolist())


class WrongIds(IdModel):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def training_step(self, batch, batch_idx):
        return self.weighted_loss(self.losses(batch), indices=self.change(batch[2]))


MISTAKES = {
    "no ids": (make_stream, {}, Model, ValueError, r"int64 \(B,\).*but got none.*indices=ids"),
    "no ids, no scores": (make_stream, {}, BareModel, ValueError, "but got none"),
    "floats": (make_stream, {}, lambda: WrongIds(lambda i: i.float()), ValueError, r"but got \(4,\) torch.float32"),
    "a column": (make_stream, {}, lambda: WrongIds(lambda i: i[:, None]), ValueError, r"but got \(4, 1\)"),
    "a list": (make_stream, {}, lambda: WrongIds(lambda i: i.tolist()), ValueError, "but got <class 'list'>"),
    "too few": (make_stream, {}, lambda: WrongIds(lambda i: i[:2]), ValueError, "Expected 2 losses"),
    "negative": (make_stream, {}, lambda: WrongIds(lambda i: i - 100), LoaderError, r"ids in \[0, 40\).*in \[-"),
    "from 1": (lambda: make_stream(shuffle=False), {"num_samples": 3}, IdModel, LoaderError, r"\[0, 3\).*in \[0, 3\]"),
    "workers read all": (lambda: DataLoader(Everywhere(), 4, num_workers=2), {}, IdModel, LoaderError, "once in an ep"),
    "drawn with repeats": (lambda: DataLoader(Resampled(), 4), {}, IdModel, LoaderError, "repeats=True"),
    "another key": (
        lambda: DataLoader(PrunedStream(Stream(), key=lambda s: 39 - s[2]), 4),
        {},
        IdModel,
        LoaderError,
        "are not those that its `key` finds",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    make, kwargs, model, error, match = MISTAKES[name]
    with pytest.raises(error, match=match):
        fit(make(), Keep(1.0, 0.3), model=model(), max_epochs=2, **kwargs)


BAD_KEYS = {
    "missing": ("id", "does not: .*TypeError|IndexError|KeyError"),
    "text": (lambda s: "a12", "ValueError"),
    "fraction": (lambda s: 1.5, r"ids in \[0, 40\).*but got 1.5"),
    "out of range": (lambda s: int(s[2]) + 1, r"ids in \[0, 40\).*but got 40"),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_keys_that_give_no_ids(name):
    key, match = BAD_KEYS[name]
    with pytest.raises(LoaderError, match=match):
        fit(DataLoader(PrunedStream(Stream(), key=key), 4), Keep(0.5))


def test_ids_in_digits_and_arguments():
    stream = PrunedStream([{"__key__": "000001"}, {"__key__": "000000"}], key="__key__", transform=lambda s: "decoded")
    stream.follow(2, 0)
    stream.select(torch.tensor([False, True]))
    assert list(stream) == ["decoded"]
    assert stream.counts == (1, 1)
    with pytest.raises(TypeError, match="stream to iterate over, but got int"):
        PrunedStream(3, key="id")
    with pytest.raises(TypeError, match="`key` to say where"):
        PrunedStream([], key=None)


def test_only_what_passes_is_transformed():
    decoded = []

    def decode(sample):
        decoded.append(int(sample[2]))
        return sample

    fit(DataLoader(PrunedStream(Stream(), id_of, transform=decode), 4), Keep(0.5), max_epochs=1)
    assert 20 <= len(decoded) <= 24  # and a first batch, which was drawn before anything was selected


class Wrapping(IterableDataset):
    def __init__(self, parts):
        self.pipeline = parts

    def __iter__(self):
        yield from self.pipeline[0]


def test_a_filter_within_another_stream_is_found():
    inner = PrunedStream(Stream(), id_of)
    assert pruned_streams(Wrapping([inner])) == [inner]
    trainer, _ = fit(DataLoader(Wrapping([inner]), 4), Keep(0.5), max_epochs=2)
    assert registry_of(trainer).saved_fraction == 0.5


def test_a_stream_that_draws_with_repeats():
    trainer, model = fit(DataLoader(Resampled(), 4), Keep(1.0, 0.5), repeats=True)
    check_losses_of_selected(trainer, model)
    trainer, model = fit(DataLoader(PrunedStream(Resampled(), id_of), 4), Keep(0.5), repeats=True, max_epochs=2)
    trained = sum(len(ids) for _, ids in model.seen)
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - trained / 80)


def check_losses_of_selected(trainer, model):
    registry = registry_of(trainer)
    for i in registry.selection.indices.tolist():
        if i in model.epoch_ids(EPOCHS - 1):
            assert float(registry.losses[i]) == pytest.approx(model.true_losses[i], rel=1e-6)


def test_a_number_of_samples_that_is_too_large_is_told():
    with pytest.warns(UserWarning, match=r"Of 50 samples, by .*num_samples=50.*, 40 came in epoch 0") as told:
        fit(make_stream(), Keep(1.0), num_samples=50)
    assert sum("came in epoch" in str(w.message) for w in told) == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(make_stream(), Keep(1.0), num_samples=50, limit_train_batches=5)
        fit(make_stream(), Keep(1.0), num_samples=50, max_steps=5, max_epochs=-1)
        fit(make_stream(), Keep(1.0))
    assert not [w for w in told if "came in epoch" in str(w.message)]


def test_refusals():
    with pytest.raises(MisconfigurationException, match=r"ScoreRegistry\(num_samples=N\).*PrunedStream\(dataset, key="):
        make_trainer(InfoBatch()).fit(IdModel(), make_stream())
    with pytest.raises(MisconfigurationException, match="IES asks for the losses of skipped samples.*`Stream`"):
        fit(make_stream(), IES())
    with pytest.raises(MisconfigurationException, match="has 40 samples, and got 30. Leave it out"):
        fit(make_loader(), InfoBatch(), num_samples=30)
    loaders = CombinedLoader({"a": make_stream(), "b": make_loader()}, "min_size")
    with pytest.raises(MisconfigurationException, match="several train DataLoaders, but got the stream `Stream`"):
        make_trainer(ScoreRegistry("a", num_samples=40), Keep(0.5)).fit(IdModel(), loaders)
    for wrong, error in ((0, ValueError), ("40", TypeError), (True, TypeError)):
        with pytest.raises(error, match="Expected `num_samples` to be an int >= 1"):
            ScoreRegistry(num_samples=wrong)
    assert fit(make_loader(), InfoBatch())[0].global_step  # the same number says nothing new


def test_an_epoch_without_anything_is_told():
    class Nothing(Keep):
        def select(self, registry, epoch, generator):
            return Selection(torch.arange(40) if epoch == 2 else torch.tensor([41]))

    with pytest.warns(UserWarning, match="Nothing was trained in an epoch: .*none came"):
        trainer, model = fit(make_stream(pruned=True), Nothing(), num_samples=42)
    assert {epoch for epoch, _ in model.seen} == {2}
    assert registry_of(trainer).saved_fraction == 0.75


@pytest.mark.parametrize(
    ("kwargs", "steps", "saved"),
    [
        ({"limit_train_batches": 7}, [7, 5, 7, 7], 8 / 112),  # of 28 samples each; the half is 20
        ({"limit_train_batches": 4}, [4, 4, 4, 4], 0.0),
        ({"max_steps": 12}, [10, 2], None),
        ({"accumulate_grad_batches": 3}, [10, 5, 10, 8], 0.1875),
    ],
)
def test_limits(kwargs, steps, saved):
    trainer, model = fit(make_stream(pruned=True), Keep(1.0, 0.5, 1.0, 0.75), **kwargs)
    assert [n for n in model.epoch_batches(EPOCHS) if n] == steps
    if saved is not None:
        assert registry_of(trainer).saved_fraction == pytest.approx(saved)
    else:  # half of what was read of the second epoch
        assert 0.05 < registry_of(trainer).saved_fraction < 0.25
    if "accumulate_grad_batches" in kwargs:
        assert trainer.global_step == 4 + 2 + 4 + 3  # an epoch's last steps are not lost


def test_validation_runs_in_each_epoch():
    trainer, model = make_trainer(ScoreRegistry(num_samples=40), Keep(1.0, 0.3)), IdModel()
    trainer.fit(model, make_stream(pruned=True), make_loader(8))
    assert [epoch for epoch, _ in model.validated] == [0, 1, 2, 3]


class Resumable(DataLoader):
    """Goes on after the batches that it has yielded."""

    done = skip = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.skip = state["done"]

    def __iter__(self):
        skip, self.skip, self.done = self.skip, 0, 0
        for batch in super().__iter__():
            self.done += 1
            if self.done > skip:
                yield batch


class Fixed(Stream):
    """Always the same order, so that a resumed run has it again."""

    def ids(self):
        self.epoch = 0
        return super().ids()


def every_step(folder):
    return ModelCheckpoint(folder, "{epoch}-{step}", every_n_train_steps=1, save_top_k=-1)


def at_ends(folder):
    return ModelCheckpoint(folder, "end-{epoch}", save_on_train_epoch_end=True, save_top_k=-1)


@pytest.mark.parametrize("pruned", [False, True])
def test_resume_at_an_epochs_end_is_exact(pruned, tmp_path):
    def run(ckpt_path=None):
        stream = PrunedStream(Fixed(), id_of) if pruned else Fixed()
        callbacks = [InfoBatch(seed=1), at_ends(tmp_path)]
        return fit(DataLoader(stream, 4), *callbacks, enable_checkpointing=True, ckpt_path=ckpt_path)

    trainer, whole = run()
    table, saved = registry_of(trainer).to_dict(), registry_of(trainer).saved_fraction
    trainer, resumed = run(tmp_path / "end-epoch=1.ckpt")
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    for name, values in registry_of(trainer).to_dict().items():
        assert torch.equal(values.nan_to_num(-1), table[name].nan_to_num(-1)), name
    assert registry_of(trainer).saved_fraction == pytest.approx(saved)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_resume_in_an_epoch_goes_on_where_the_loader_can(tmp_path):
    """A loader of known length: without one, Lightning reads a batch ahead, which its state then counts as trained."""

    class Sized(Fixed):
        def __len__(self):
            return 40

    def run(ckpt_path=None):
        callbacks = [InfoBatch(seed=1), every_step(tmp_path)]
        return fit(Resumable(Sized(), 4), *callbacks, enable_checkpointing=True, ckpt_path=ckpt_path, max_epochs=3)

    trainer, whole = run()
    table = registry_of(trainer).to_dict()
    for step in (3, 14, 27):
        trainer, resumed = run(tmp_path / f"epoch={step // 10}-step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
        for name, values in registry_of(trainer).to_dict().items():
            assert torch.equal(values.nan_to_num(-1), table[name].nan_to_num(-1)), name


@pytest.mark.parametrize("pruned", [False, True])
def test_resume_in_an_epoch_begins_the_stream_again_where_the_loader_cannot_go_on(pruned, tmp_path):
    def run(ckpt_path=None):
        stream = PrunedStream(Fixed(), id_of) if pruned else Fixed()
        callbacks = [Keep(1.0, 0.5), every_step(tmp_path)]
        return fit(DataLoader(stream, 4), *callbacks, enable_checkpointing=True, ckpt_path=ckpt_path, max_epochs=3)

    run()
    with pytest.warns(UserWarning, match="middle of epoch 1 of a stream, whose loader cannot go on there"):
        trainer, model = run(tmp_path / "epoch=1-step=12.ckpt")
    own = {i for epoch, ids in model.seen if epoch == 1 for i in ids}
    assert len(own) == (20 if pruned else 40)
    assert len(model.epoch_ids(2)) == 40
    check_losses(trainer, model)


class OnRanks(IdModel):
    def on_fit_end(self):
        self.trainer.strategy.barrier()


def rank_run(rank, folder, name, split, pruned, workers):
    loader = make_stream(pruned=pruned, rank=rank, world_size=2, split=split, num_workers=workers)
    shares = (0.6, 0.3, 1.0)
    trainer, model = fit(loader, Keep(*shares), model=OnRanks(), max_epochs=3, strategy="ddp", devices=2)
    registry = registry_of(trainer)
    facts = {"seen": model.seen, "table": registry.to_dict(), "saved": registry.saved_fraction}
    torch.save({**facts, "steps": trainer.global_step, "true": model.true_losses}, folder / f"{name}{rank}.pt")


SPLITS = {
    "alike": None,
    "uneven": (range(25), range(25, 40)),
    "very uneven": (range(3), range(3, 40)),
}


def all_ranks(rank, folder):
    for name, split in SPLITS.items():
        for pruned in (False, True):
            rank_run(rank, folder, f"{name}{pruned}", split, pruned, 0)
    rank_run(rank, folder, "workers", None, True, 2)
    with pytest.raises(LoaderError) as error:
        rank_run(rank, folder, "shared", (range(40), range(40)), False, 0)
    (folder / f"shared{rank}.txt").write_text(str(error.value))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    skip_without_fork()
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(all_ranks, folder, folder=folder)
    return folder


@pytest.mark.ddp
@pytest.mark.parametrize("name", [*(f"{name}{pruned}" for name in SPLITS for pruned in (False, True)), "workers"])
def test_two_ranks_take_as_many_steps(ranks, name):
    first, second = (torch.load(Path(ranks) / f"{name}{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["steps"] == second["steps"] > 0
    assert [epoch for epoch, _ in first["seen"]] == [epoch for epoch, _ in second["seen"]]
    assert first["saved"] == second["saved"]
    for key, values in first["table"].items():
        assert torch.equal(values.nan_to_num(-1), second["table"][key].nan_to_num(-1)), key
    last = dict.fromkeys(range(40), (0, 0.0))
    for facts in (first, second):
        for epoch, ids in facts["seen"]:
            last |= {i: max(last[i], (epoch, facts["true"][i])) for i in ids}
    recorded = first["table"]["losses"]
    for i, (epoch, true) in last.items():
        if epoch == 2:  # of an epoch of all
            assert float(recorded[i]) == pytest.approx(true, rel=1e-6)
    ids = [i for facts in (first, second) for epoch, some in facts["seen"] if epoch == 0 for i in some]
    assert len(ids) == len(set(ids))
    if name in ("alikeTrue", "workers"):
        assert len(ids) <= 24
        assert 0.2 < first["saved"] < 0.45
    if name.endswith("False"):
        assert first["saved"] == 0


@pytest.mark.ddp
def test_ranks_that_read_the_same_stream_are_told(ranks):
    for rank in (0, 1):
        assert "is in the first batch of several" in (Path(ranks) / f"shared{rank}.txt").read_text()


def test_a_step_reads_the_device_in_a_first_epoch_only():
    class Watched(WeightedModel):
        def __init__(self):
            super().__init__()
            self.recorder = Recorder()

        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            with self.recorder:
                return self.weighted_loss(losses, indices=batch[2])

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.recorder.ops.clear()

    class WatchedRegistry(ScoreRegistry):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with pl_module.recorder:
                super().on_train_batch_end(trainer, pl_module, *args)

    model = Watched()
    trainer = make_trainer(WatchedRegistry(num_samples=40), Keep(0.5, weight=2.0), max_epochs=2)
    trainer.fit(model, make_stream(pruned=True))
    assert model.recorder.ops
    assert [op for op in model.recorder.ops if any(name in op for name in SYNCHRONISING)] == []


def test_the_datasets_own_attributes_are_at_hand():
    stream = PrunedStream(Stream(), id_of)
    assert stream.world_size == 1
    assert len(make_dataset()) == 40
    with pytest.raises(AttributeError, match="nothing"):
        _ = stream.nothing


STREAM = """
trainer:
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  accelerator: cpu
  callbacks:
    - class_path: InfoBatch
    - class_path: lightning_prune.ScoreRegistry
      init_args: {num_samples: 40}
model: tests.streams.ModelWithStream
"""


@pytest.mark.filterwarnings("ignore")
def test_from_yaml(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stream.yaml").write_text(STREAM)
    from lightning_prune.cli import main

    main(["fit", "--config", "stream.yaml"])


@pytest.mark.filterwarnings("ignore")
def test_scores_of_a_stream(tmp_path):
    """Collected as from a map-style dataset in the same order."""
    found = []
    for by_ids, loader in ((False, make_loader(shuffle=False)), (True, make_stream(shuffle=False))):
        recorder = ScoreRecorder(["EL2N", "Forgetting"], save_to=str(tmp_path / str(by_ids)))
        model = IdModel() if by_ids else Model()
        make_trainer(ScoreRegistry(num_samples=40 if by_ids else None), recorder).fit(model, loader)
        found.append([torch.as_tensor(tracker.compute()) for tracker in recorder.trackers])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_monitor_on_a_stream():
    class Labelled(Stream):
        targets = make_dataset().tensors[1]

    monitor = PruningMonitor(targets="targets")
    trainer, _ = fit(DataLoader(PrunedStream(Labelled(), id_of), 4), Keep(1.0, 0.5), monitor)
    assert trainer.callback_metrics["prune/usage_mean"] == 3.0
    assert len(monitor.history) == EPOCHS
    assert monitor.history[0]["class_kept_min"] == 1.0
    with pytest.raises(MisconfigurationException, match="got a stream.*gradient_every_n_epochs=0"):
        fit(make_stream(), Keep(0.5), PruningMonitor(gradient_every_n_epochs=1))
    with pytest.raises(MisconfigurationException, match=r"PruningMonitor logs.*ScoreRegistry\(num_samples=N\)"):
        make_trainer(DivBS(0.5), PruningMonitor()).fit(IdModel(), make_stream())


def test_a_loader_that_is_no_dataloader(tmp_path):
    """As webdataset's: anything to iterate over, which has no dataset to look into."""

    class Batches:
        def __iter__(self):
            yield from make_stream()

    report = PruningReport(path=tmp_path / "report.html")
    trainer, model = fit(Batches(), Keep(1.0, 0.5), report)
    check_losses_of_selected(trainer, model)
    assert "Batches" in (tmp_path / "report.html").read_text()
