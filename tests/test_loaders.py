"""Every loader: what is trained was selected, each loss is its sample's, and what is said to be saved was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import InfoBatch, Pruner, RandomPruning, RePB, ScoreRegistry, SelectiveBackprop
from lightning_prune.core.checks import LoaderError
from lightning_prune.testing.processes import run_ranks
from tests import contract
from tests.helpers import Keep, Model, make_dataset, make_loader, make_trainer, registry_of
from tests.loaders import LENGTHS, LOADERS, WEIGHTS, Buckets, Tokens, WeightedShards, batches, loader

ROOT = Path(__file__).parent.parent
EPOCHS = 4
METHODS = {"InfoBatch": InfoBatch, "Keep": lambda: Keep(1.0, 0.5, 0.75, weight=1.5)}


class Watch(Callback):
    """Checks each step against the epoch's selection, and each loss at the end of an epoch."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.trained = self.epochs = 0
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ids = batch[2].tolist()
        assert bool(registry_of(trainer).selected[batch[2]].all())
        self.batches.append(ids)
        self.trained += len(ids)

    def on_train_epoch_end(self, trainer, pl_module):
        losses = registry_of(trainer).losses
        for index, loss in pl_module.true_losses.items():
            assert float(losses[index]) == pytest.approx(loss, rel=1e-6)
        assert {i for i, loss in enumerate(losses.tolist()) if loss == loss} == set(pl_module.true_losses)
        self.epochs += 1


def fit(make, method=None, **kwargs):
    model, watch = Model(), Watch()
    callbacks = [watch] if method is None else [method, watch]
    trainer = make_trainer(*callbacks, **{"max_epochs": EPOCHS, **kwargs})
    torch.manual_seed(1)
    trainer.fit(model, make())
    return trainer, model, watch


def unpruned(make, epochs=EPOCHS):
    """Return how many samples the loader yields in so many epochs, by itself."""
    torch.manual_seed(1)
    data = make()
    return sum(len(batch[2]) for _ in range(epochs) for batch in data)


@pytest.mark.parametrize("method", ["InfoBatch", "Keep"])
@pytest.mark.parametrize("name", LOADERS)
def test_what_is_trained_recorded_and_saved(name, method):
    trainer, _, watch = fit(LOADERS[name], METHODS[method]())
    assert watch.epochs == EPOCHS
    full = unpruned(LOADERS[name])
    saved = registry_of(trainer).saved_fraction
    assert watch.trained < full
    # batch samplers that read a sampler are counted by samples, of which their full epoch drops none here
    assert saved == pytest.approx(1 - watch.trained / full, abs=0.02)


@pytest.mark.parametrize("name", ["weighted", "tokens"])
@pytest.mark.parametrize("case", contract.CASES)
@pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once")
def test_every_method(case, name):
    trainer, model = make_trainer(contract.make(case), max_epochs=6), Model()
    trainer.fit(model, LOADERS[name]())
    registry = registry_of(trainer)
    trained, full = sum(len(ids) for _, ids in model.seen), unpruned(LOADERS[name], 6)
    assert trained < full
    assert registry.saved_fraction == pytest.approx(1 - trained / full)
    last = [i for epoch, ids in model.seen if epoch == 5 for i in ids]
    assert bool(registry.selected[last].all())
    if not method_refreshes(case):  # else the losses of skipped samples are those of a forward pass in eval mode
        assert {i for i, loss in enumerate(registry.losses.tolist()) if loss == loss} == set(model.true_losses)
        for index, loss in model.true_losses.items():
            assert float(registry.losses[index]) == pytest.approx(loss, rel=1e-6)


def method_refreshes(case):
    return contract.method_of(case).refreshes_losses


@pytest.mark.parametrize("name", LOADERS)
def test_nothing_pruned_trains_what_the_loader_draws(name):
    """As many samples and batches as without us, and none that the sampler leaves out."""
    _, _, watch = fit(LOADERS[name], RandomPruning(0.0))
    assert watch.trained == unpruned(LOADERS[name])
    if "weighted" in name or name in ("workers", "drop last"):
        assert all(WEIGHTS[i] > 0 for ids in watch.batches for i in ids)
    if name == "subset":
        assert {i for ids in watch.batches for i in ids} == set(range(5, 29))
    if "own order" in name or name == "another library's":
        orders = [tuple(i for ids in watch.batches[e * 10 :][:10] for i in ids) for e in range(EPOCHS)]
        assert len(set(orders)) == EPOCHS  # a fresh one in each epoch


@pytest.mark.parametrize("name", LOADERS)
def test_global_generators_and_the_users_objects_are_left_alone(name):
    data = LOADERS[name]()
    parts = {key: value for key, value in vars(data).items() if key != "_iterator"}
    inner = data.sampler if data.batch_sampler is None else data.batch_sampler
    before = dict(vars(inner)) if hasattr(inner, "__dict__") else {}
    trainer, model = make_trainer(RandomPruning(0.5), max_epochs=2), Model()
    trainer.fit(model, data)
    assert {key: value for key, value in vars(data).items() if key != "_iterator"} == parts
    assert (dict(vars(inner)) if hasattr(inner, "__dict__") else {}) == before


@pytest.mark.parametrize(
    "name", ["weighted", "own order", "reads its sampler", "buckets, workers", "tokens", "by batch"]
)
def test_a_resumed_run_draws_the_same(name, tmp_path):
    """From an epoch's end, and from its middle."""
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer, model = make_trainer(InfoBatch(), checkpoint, max_epochs=EPOCHS, enable_checkpointing=True), Model()
    trainer.fit(model, LOADERS[name]())
    whole = registry_of(trainer).to_dict()
    steps = len(model.seen)
    for step in (steps // 4, steps // 2, steps - 1):
        resumed, again = make_trainer(InfoBatch(), max_epochs=EPOCHS), Model()
        with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
            resumed.fit(again, LOADERS[name](), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert again.seen == model.seen[step:]
        for column, values in registry_of(resumed).to_dict().items():
            assert torch.equal(values.nan_to_num(-1), whole[column].nan_to_num(-1)), column


def test_neighbours_in_length_stay_neighbours():
    """Batches are filled up, but never beyond what the batches may hold that their samples come from."""
    _, _, watch = fit(lambda: batches(Tokens(8)), Keep(0.5))
    assert all(max(LENGTHS[i] for i in ids) * len(ids) <= 60 for ids in watch.batches)
    full = len(Tokens(8).make())
    assert len(watch.batches) < 0.8 * full * EPOCHS
    _, _, watch = fit(lambda: batches(Buckets(8)), Keep(0.5))
    assert [len(ids) for ids in watch.batches] == [8, 8, 4] * EPOCHS


def test_steps_are_those_really_trained():
    """RePB's windows of one batch, with batches of several lengths."""

    class Check(RePB):
        def on_epoch_recorded(self, registry, record):
            trained = watch.batches[self.done :]
            self.done += len(trained)
            where = {i: step for step, ids in enumerate(trained) for i in ids}
            assert record.steps.tolist() == [where[i] for i in record.indices.tolist()]
            losses = dict(zip(record.indices.tolist(), record.losses.tolist(), strict=True))
            super().on_epoch_recorded(registry, record)
            low = {i for ids in trained for i in ids if losses[i] < sum(losses[j] for j in ids) / len(ids) - 1e-9}
            chance = registry.column("repb_chance")
            assert {i for i in where if chance[i] < 1} == low
            self.checked += 1

        done = checked = 0

    method, watch = Check(0.5), Watch()
    make_trainer(watch, method, max_epochs=3).fit(Model(), batches(Tokens(8)))
    assert method.checked == 3


def test_weights_by_sample_whatever_is_drawn():
    """A sample that is drawn twice weighs the same twice; E[w 1(kept)] = 1 holds for what the sampler draws."""

    class Check(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            selection = registry_of(trainer).selection
            by_id = dict(zip(selection.indices.tolist(), selection.weights.tolist(), strict=True))
            assert registry_of(trainer).step.weights.tolist() == [by_id[i] for i in batch[2].tolist()]

    make_trainer(Keep(0.5, weight=2.0), Check(), max_epochs=2).fit(Model(), LOADERS["with replacement"]())


def test_a_shard_of_the_users_own():
    """In one process it is followed; in several it is refused, as the draw of the others is not known."""
    _, _, watch = fit(lambda: loader(WeightedShards(range(40), 1, 0)), Keep(0.5))
    assert all(WEIGHTS[i] > 0 for ids in watch.batches for i in ids)
    assert len({tuple(map(tuple, watch.batches[i : i + 3])) for i in range(0, 12, 3)}) > 1
    with pytest.raises(MisconfigurationException, match="`WeightedShards`, which shards by itself"):
        fit(lambda: loader(WeightedShards(range(40), 2, 0)), Keep(0.5))
    _, _, watch = fit(lambda: loader(DistributedSampler(make_dataset(), 1, 0)), Keep(0.5))
    assert watch.trained == 80


class Stubborn(DataLoader):
    """Draws its batches itself, as loaders do that keep an iterator of their own."""

    def __iter__(self):
        for ids in torch.arange(40).split(4):
            yield self.collate_fn([self.dataset[i] for i in ids.tolist()])


@pytest.mark.filterwarnings("ignore:`Stubborn` overrides `__iter__`")
def test_a_loader_that_does_not_draw_from_its_batch_sampler():
    with pytest.raises((MisconfigurationException, LoaderError), match="Expected `Stubborn` to draw its batches from"):
        fit(lambda: Stubborn(make_dataset(), 4, shuffle=True), Keep(0.5))


def test_a_draw_without_selected_samples():
    with pytest.raises(MisconfigurationException, match="Expected `list` to draw a selected sample, but none of the 4"):
        fit(lambda: loader([0, 1, 2, 3]), Keep(1.0, 0.05))


@pytest.mark.parametrize("batch_size", [3, 8])
@pytest.mark.parametrize("kept", [33, 32, 31, 17, 9])
def test_no_batch_of_one(batch_size, kept):
    """Which BatchNorm cannot train on, unless a full epoch has one, too; nothing is dropped or repeated."""
    trainer, model = make_trainer(Keep(kept / 40), max_epochs=2), Model()
    trainer.fit(model, make_loader(batch_size=batch_size))
    for epoch in range(2):
        lengths = [len(ids) for e, ids in model.seen if e == epoch]
        assert sum(lengths) == kept
        assert len(lengths) == -(-kept // batch_size)
        assert lengths[:-2] == [batch_size] * (len(lengths) - 2)
        assert min(lengths) > 1 or 40 % batch_size == 1
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - kept / 40)
    assert int(registry_of(trainer).losses[registry_of(trainer).selected].isfinite().sum()) == kept


def test_no_batch_of_one_of_a_batch_sampler():
    _, _, watch = fit(lambda: batches(Buckets(8)), Keep(17 / 40))
    assert [len(ids) for ids in watch.batches] == [8, 7, 2] * EPOCHS


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_no_pick_of_one_out_of_a_short_last_batch(ratio):
    model = Model()
    method = SelectiveBackprop(prune_ratio=ratio, start=0.0, end=1.0, interrupt=0)
    make_trainer(method, max_epochs=3).fit(model, make_loader(42, batch_size=8))
    assert {len(ids) for _, ids in model.seen} == {round(8 * (1 - ratio)), 2}
    model, one = Model(), SelectiveBackprop(prune_ratio=0.8, start=0.0, end=1.0, interrupt=0)
    make_trainer(one, max_epochs=1).fit(model, make_loader(42, batch_size=5))
    assert {len(ids) for _, ids in model.seen} == {1}  # as was asked for


def test_validation_follows_a_length_that_was_counted_once():
    model = Model()
    make_trainer(Keep(1.0, 0.5), max_epochs=2).fit(model, LOADERS["balanced"](), make_loader(8))
    assert [epoch for epoch, _ in model.validated] == [0, 1]
    assert model.epoch_batches(2) == [8, 4]


@pytest.mark.parametrize("name", ["weighted", "buckets, workers", "by batch"])
def test_loops_draw_what_the_trainer_draws(name):
    trainer, _, watch = fit(LOADERS[name], RandomPruning(0.5, seed=0))
    pruner, seen = Pruner(RandomPruning(0.5, seed=0), max_epochs=EPOCHS), []
    attached = pruner.attach(LOADERS[name]())
    for _ in pruner.epochs():
        for _, _, ids in attached:
            seen.append(ids.tolist())
            pruner.weighted_loss(ids.float())
    assert seen == watch.batches
    assert pruner.saved_fraction == registry_of(trainer).saved_fraction


def run_rank(rank, folder):
    """Be one of two ranks."""
    for name in ("weighted", "own order", "reads its sampler", "tokens", "by batch", "listed"):
        for method in ("Keep", "InfoBatch"):
            model = Model()
            trainer = make_trainer(METHODS[method](), max_epochs=EPOCHS, strategy="ddp", devices=2)
            torch.manual_seed(trainer.global_rank)  # else all would draw the same by chance
            trainer.fit(model, LOADERS[name]())
            registry = ScoreRegistry.of(trainer)
            found = {
                "seen": model.seen,
                "losses": model.true_losses,
                "table": registry.to_dict(),
                "saved": registry.saved_fraction,
                "selection": registry.selection.indices,
            }
            torch.save(found, folder / f"{name}-{method}-{trainer.global_rank}.pt")
    model, half = Model(), 20 * trainer.global_rank
    own = torch.utils.data.Subset(make_dataset(), range(half, half + 20))
    for key, data, message in (
        ("shards", loader(WeightedShards(range(40), 2, 0)), "which shards by itself"),
        ("presharded", DataLoader(own, 4, shuffle=True), "each reads data of its own"),
    ):
        trainer = make_trainer(Keep(0.5), strategy="ddp", devices=2, use_distributed_sampler=key != "presharded")
        with pytest.raises(MisconfigurationException, match=message):
            trainer.fit(model, data)
        (folder / f"{key}-{trainer.global_rank}").touch()


@pytest.mark.ddp
def test_two_processes(tmp_path):
    """They share the draw, take as many steps, and together train what is selected."""
    run_ranks(run_rank, tmp_path, folder=tmp_path)
    files = sorted(tmp_path.glob("*-0.pt"))
    assert len(files) == 12
    assert len(list(tmp_path.glob("shards-?"))) == len(list(tmp_path.glob("presharded-?"))) == 2
    for path in files:
        first, second = (torch.load(path.with_name(f"{path.stem[:-1]}{rank}.pt"), weights_only=True) for rank in (0, 1))
        assert [epoch for epoch, _ in first["seen"]] == [epoch for epoch, _ in second["seen"]]  # as many steps
        for column, values in first["table"].items():
            assert torch.equal(values.nan_to_num(-1), second["table"][column].nan_to_num(-1)), column
        assert 0 < first["saved"] == second["saved"] < 1
        last = [i for found in (first, second) for epoch, ids in found["seen"] if epoch == EPOCHS - 1 for i in ids]
        assert set(last) <= set(first["selection"].tolist())
        losses = first["table"]["losses"]
        for rank in (first, second):
            final = {i for epoch, ids in rank["seen"] if epoch == EPOCHS - 1 for i in ids}
            for i in final - {j for j in last if last.count(j) > 1}:
                assert float(losses[i]) == pytest.approx(rank["losses"][i], rel=1e-5)
