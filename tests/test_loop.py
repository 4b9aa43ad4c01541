"""`Pruner`: a loop without a Trainer trains what the Trainer trains, bit for bit."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

import lightning_prune
from lightning_prune import AlignPrune, InfoBatch, Pruner, PruningCallback, RandomPruning, SelectiveBackprop
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.methods.ies import IES
from tests import contract, loop_run
from tests.helpers import Keep, Model, PlainModel, make_loader, make_trainer, registry_of
from tests.processes import torchrun

pytestmark = pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once")
EPOCHS = 5
ROOT = Path(__file__).parent.parent


def make_pruner(method, model=None, **kwargs):
    """Return a pruner whose hook, where the method needs one, is the model's forward pass in eval mode."""
    hook = None
    if model is not None and (method.picks_in_batch or method.refreshes_losses):

        def hook(batch):
            model.eval()
            pruner.weighted_loss(model.losses(batch), **model.outputs)
            model.train()

    pruner = Pruner(method, per_sample_loss=hook, **{"max_epochs": EPOCHS, **kwargs})
    return pruner


def train(pruner, loader, model, optimizer, scheduler=None, stop=None):
    """Train as `helpers.Model` does under a Trainer; return the number of batches."""
    batches = 0
    loader = pruner.attach(loader)
    model.train()
    for epoch in pruner.epochs():
        model.epoch = epoch
        for batch in loader:
            losses = model.losses(batch)
            loss = pruner.weighted_loss(losses, **model.outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                pruner.step_scheduler(scheduler)
            batches += 1
            if stop is not None and batches == stop:
                return pruner.state_dict()
    return batches


class Bare(Model):
    """`helpers.Model` outside a Trainer: its epoch is set by hand."""

    epoch = 0

    @property
    def current_epoch(self):
        return self.epoch


def in_a_loop(method, *, dropout=0.0, loader=None, stop=None, state=None, model=None, **kwargs):
    model = model or Bare(dropout=dropout)
    optimizer = model.configure_optimizers()
    pruner = make_pruner(method, model, **kwargs)
    if state is not None:
        pruner.load_state_dict(state["pruner"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    left = train(pruner, loader or make_loader(), model, optimizer, stop=stop)
    state = {
        "pruner": left,
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
    }
    return pruner, model, state


def in_a_trainer(method, *, dropout=0.0, loader=None, **kwargs):
    model = Model(dropout=dropout)
    trainer = make_trainer(method, **{"max_epochs": EPOCHS, **kwargs})
    trainer.fit(model, loader or make_loader())
    return trainer, model


def same(pruner, model, trainer, other):
    assert model.seen == other.seen
    assert torch.equal(model.layer.weight, other.layer.weight)
    table, expected = pruner.registry.to_dict(), registry_of(trainer).to_dict()
    assert table.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(values.nan_to_num(-1), table[name].nan_to_num(-1)), name
    assert torch.equal(pruner.selection.indices, registry_of(trainer).selection.indices)
    assert pruner.saved_fraction == registry_of(trainer).saved_fraction
    for name, value in pruner.metrics.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value, rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize("case", contract.CASES)
def test_a_loop_trains_what_the_trainer_trains(case):
    torch.manual_seed(3)
    trained = in_a_trainer(contract.make(case), dropout=0.3)
    torch.manual_seed(3)
    pruner, model, _ = in_a_loop(contract.make(case), dropout=0.3)
    same(pruner, model, *trained)
    assert pruner.saved_fraction > 0


@cache
def whole_loop(case):
    torch.manual_seed(5)
    return in_a_loop(contract.make(case), dropout=0.3)


@pytest.mark.parametrize("case", ["InfoBatch", "RePB", "SelectiveBackprop", "IES", "AlignPrune"])
@pytest.mark.parametrize("stop", [3, 10, 13, 20, 31])  # in the middle, at the end of an epoch, on its last batch
def test_a_loaded_state_goes_on(case, stop):
    """With dropout, so that the global generators must go on, too."""
    whole, model, _ = whole_loop(case)
    torch.manual_seed(5)
    _, first, state = in_a_loop(contract.make(case), dropout=0.3, stop=stop)
    torch.manual_seed(6)
    resumed, second, _ = in_a_loop(contract.make(case), dropout=0.3, state=state)
    assert len(first.seen) == stop
    assert first.seen + second.seen == model.seen
    assert torch.equal(second.layer.weight, model.layer.weight)
    for name, values in whole.registry.to_dict().items():
        assert torch.equal(values.nan_to_num(-1), resumed.registry.to_dict()[name].nan_to_num(-1)), name
    assert resumed.saved_fraction == whole.saved_fraction
    assert resumed.metrics == pytest.approx(whole.metrics, nan_ok=True)


def test_a_state_between_epochs_and_after_the_run():
    model, pruner = Bare(), Pruner(InfoBatch(), max_epochs=3)
    loader, states = pruner.attach(make_loader()), []
    assert pruner.state_dict() == {}
    for epoch in pruner.epochs():
        for batch in loader:
            pruner.weighted_loss(model.losses(batch))
        assert pruner.registry.epoch == epoch + 1  # the epoch has ended with its last batch
        assert len(pruner.metrics) == 4
        states.append(pruner.state_dict())
    for epoch, state in enumerate(states):
        resumed = Pruner(InfoBatch(), max_epochs=3)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        again, seen = resumed.attach(make_loader()), []
        for number in resumed.epochs():
            seen.append(number)
            for batch in again:
                resumed.weighted_loss(model.losses(batch))
        assert seen == list(range(epoch + 1, 3))


def test_a_state_is_plain_and_of_its_run(tmp_path):
    _, _, state = in_a_loop(InfoBatch(), stop=13)
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    pruner, _, _ = in_a_loop(InfoBatch(), state=state)
    assert pruner.registry.epoch == EPOCHS
    with pytest.raises(StateMismatchError, match=r"dataset of 40 samples.*but got 39"):
        in_a_loop(InfoBatch(), state=state, loader=make_loader(39))
    with pytest.raises(StateMismatchError, match="Expected to derive the selection of epoch 1 again"):
        in_a_loop(RandomPruning(0.5), state=state)
    with pytest.warns(UserWarning, match=r"belongs to the dataset \['TensorDataset', None\]"):
        in_a_loop(InfoBatch(), state=state, dataset_id="second")


def test_seeds_are_those_of_the_trainer(monkeypatch):
    def order(method, **kwargs):
        return in_a_loop(method, **kwargs)[1].seen

    zero = order(InfoBatch())
    assert order(InfoBatch(), seed=0) == zero
    assert order(InfoBatch(seed=0), seed=1) == zero
    one = order(InfoBatch(seed=1))
    assert order(InfoBatch(), seed=1) == one != zero
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert order(InfoBatch()) == one == in_a_trainer(InfoBatch())[1].seen


@pytest.mark.parametrize("max_steps", [7, 10, 23])
def test_max_steps(max_steps):
    method, other = RandomPruning(0.5), RandomPruning(0.5)
    pruner, model, _ = in_a_loop(method, max_epochs=None, max_steps=max_steps)
    trained = in_a_trainer(other, max_epochs=-1, max_steps=max_steps)
    assert len(model.seen) == max_steps == pruner.global_step
    same(pruner, model, *trained)
    assert pruner.saved_fraction == pytest.approx(0.5)  # what was not reached is not saved


def accelerate_style(pruner, accumulate, make_scheduler, epochs_of_full):
    model = Bare()
    optimizer = model.configure_optimizers()
    scheduler, loader = make_scheduler(optimizer), pruner.attach(make_loader())
    lrs, steps = [], 0
    for epoch in pruner.epochs():
        model.epoch = epoch
        for i, batch in enumerate(loader):
            loss = pruner.weighted_loss(model.losses(batch)) / accumulate
            loss.backward()
            if (i + 1) % accumulate == 0 or i + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
                pruner.step_scheduler(scheduler)
                steps += 1
                lrs.append(optimizer.param_groups[0]["lr"])
    return model, scheduler, lrs, steps


@pytest.mark.parametrize("accumulate", [1, 3, 4])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_accumulation_and_schedules(accumulate):
    """The same steps, learning rates and weights as the Trainer's; OneCycle ends at its end and does not overrun."""

    def one_cycle(module, optimizer):
        total = module.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    other = Model(schedule=one_cycle)
    trainer = make_trainer(Keep(1.0, 0.5, 0.75), max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    trainer.fit(other, make_loader())
    total = trainer.lr_scheduler_configs[0].scheduler.total_steps

    pruner = Pruner(Keep(1.0, 0.5, 0.75), max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    model, scheduler, lrs, steps = accelerate_style(
        pruner, accumulate, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=total), EPOCHS
    )
    assert scheduler.last_epoch == total
    assert steps == pruner.global_step == trainer.global_step < total
    assert torch.equal(model.layer.weight, other.layer.weight)
    assert lrs[-1] == trainer.optimizers[0].param_groups[0]["lr"]


class Counted:
    """A scheduler that counts its steps."""

    def __init__(self, *args):
        self.calls = 0

    def step(self):
        self.calls += 1


@pytest.mark.parametrize("stop", [11, 12, 15])
def test_a_resumed_schedule_ends_on_time(stop):
    model, counted = Bare(), Counted()
    optimizer = model.configure_optimizers()
    pruner = Pruner(RandomPruning(0.5), max_epochs=4)
    state = train(pruner, make_loader(), model, optimizer, counted, stop=stop)
    resumed = Pruner(RandomPruning(0.5), max_epochs=4)
    resumed.load_state_dict(state)
    train(resumed, make_loader(), model, optimizer, counted)
    assert counted.calls == 40


def test_schedules_that_are_not_stretched():
    for kwargs in ({"max_steps": 12}, {"max_epochs": 2}):
        counted, method = Counted(), RandomPruning(0.5, scale_lr_schedule="max_steps" in kwargs)
        model = Bare()
        pruner = Pruner(method, **kwargs)
        assert train(pruner, make_loader(), model, model.configure_optimizers(), counted) == counted.calls


def test_a_forgotten_accumulation_is_told():
    pruner = Pruner(Keep(1.0), max_epochs=1)
    with pytest.warns(UserWarning, match=r"called 3 times in an epoch of 10 optimizer steps, so the schedule"):
        accelerate_style(pruner, 4, Counted, 1)
    pruner = Pruner(Keep(1.0), max_epochs=1, accumulate_grad_batches=4)
    with pytest.raises(RuntimeError, match="once after each optimizer step, but it was called again"):
        accelerate_style(pruner, 1, Counted, 1)


def test_half_precision():
    """Losses in bfloat16 are recorded in float32, and weighted."""
    model = Bare()
    pruner = Pruner(Keep(1.0, 0.5, weight=2.0), max_epochs=2)
    loader = pruner.attach(make_loader())
    for _ in pruner.epochs():
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16):
                losses = F.cross_entropy(model.layer(batch[0]), batch[1], reduction="none").bfloat16()
                loss = pruner.weighted_loss(losses)
            assert loss.dtype == torch.bfloat16
            assert float(loss.detach()) == pytest.approx(2 * float(losses.detach().float().mean()), rel=1e-2)
    assert pruner.registry.losses.dtype == torch.float32
    assert bool(pruner.registry.losses.isfinite().all())


def test_state_moves_to_the_losses():
    pruner = Pruner(Keep(0.5, weight=2.0), max_epochs=1)
    loader = pruner.attach(make_loader())
    for _ in pruner.epochs():
        for _batch in loader:
            assert pruner.registry.losses.device.type == "cpu"
            loss = pruner.weighted_loss(torch.ones(4, device="meta"))
            assert (loss.device.type, pruner.registry.losses.device.type) == ("meta", "meta")
            return


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_and_global_generators_are_left_alone(workers):
    loader = make_loader(shuffle=False, num_workers=workers)
    parts, after = (loader.batch_sampler, loader.sampler, loader.dataset), []

    def pruned():
        pruner = Pruner(RandomPruning(0.5), max_epochs=EPOCHS)
        attached = pruner.attach(loader)
        for _ in pruner.epochs():
            for batch in attached:
                pruner.weighted_loss(batch[2].float())

    for visit in (lambda: [list(loader) for _ in range(EPOCHS)], pruned):
        torch.manual_seed(1)
        visit()
        after.append(torch.get_rng_state())
    assert torch.equal(*after)
    assert (loader.batch_sampler, loader.sampler, loader.dataset) == parts
    assert len(loader) == 10


def test_the_attached_loader_looks_like_the_users():
    pruner = Pruner(RandomPruning(0.5), max_epochs=1)
    given = make_loader()
    loader = pruner.attach(given)
    assert len(loader) == 10
    assert (loader.dataset, loader.batch_size) == (given.dataset, 4)
    loader.sampler.set_epoch(3)  # as loops under DDP do; the plan knows its epoch
    for _ in pruner.epochs():
        assert len(loader) == 5
        for batch in loader:
            assert batch[0].shape == (4, 8)
            pruner.weighted_loss(torch.ones(4))


def test_a_loop_left_by_break_counts_what_it_trained():
    pruner, trained = Pruner(Keep(0.5), max_epochs=2), []
    loader = pruner.attach(make_loader())
    for epoch in pruner.epochs():
        for i, (_, _, ids) in enumerate(loader):
            if epoch == 0 and i == 2:
                break
            trained += ids.tolist()
            pruner.weighted_loss(torch.ones(len(ids)))
        assert pruner.weighted_loss(torch.tensor([1.0, 3.0, 2.0])) == 2.0  # validation: no step is running
    assert len(trained) == 8 + 20
    losses = pruner.registry.losses
    assert sorted(set(trained)) == losses.isfinite().nonzero().squeeze(1).tolist()
    assert pruner.saved_fraction == pytest.approx(1 - (8 + 20) / (16 + 40))  # of 20 epoch 0 was to train 8 of


def test_an_epoch_in_two_loops_goes_on():
    pruner, trained = Pruner(Keep(1.0), max_epochs=1), []
    loader = pruner.attach(make_loader())
    for _ in pruner.epochs():
        for part in (itertools.islice(loader, 3), loader):
            for _, _, ids in part:
                trained += ids.tolist()
                pruner.weighted_loss(torch.ones(len(ids)))
    assert sorted(trained) == list(range(40))
    assert pruner.saved_fraction == 0


def test_a_skipped_batch_has_no_losses():
    pruner = Pruner(Keep(1.0), max_epochs=1)
    loader = pruner.attach(make_loader(shuffle=False))
    for _ in pruner.epochs():
        for i, (_, _, ids) in enumerate(loader):
            if i == 1:
                pruner.skip_batch()
                continue
            pruner.weighted_loss(ids.float())
    assert pruner.registry.losses.isnan().nonzero().squeeze(1).tolist() == [4, 5, 6, 7]


def test_a_loader_may_be_attached_anew_between_epochs():
    pruner, seen = Pruner(Keep(1.0), max_epochs=2), []
    loader = pruner.attach(make_loader())
    for epoch in pruner.epochs():
        for _, _, ids in loader:
            seen.append((epoch, len(ids)))
            pruner.weighted_loss(ids.float())
        loader = pruner.attach(make_loader(batch_size=8))
    assert seen == [(0, 4)] * 10 + [(1, 8)] * 5
    with pytest.raises(ValueError, match="dataset of 40 samples.*but got 41"):
        pruner.attach(make_loader(41))


def test_fabric():
    """One process: the same as a plain loop; batches are moved as Fabric does."""
    fabric = Fabric(accelerator="cpu", devices=1)
    task = PlainTask()
    model, optimizer = fabric.setup(task, torch.optim.SGD(task.parameters(), 0.1, momentum=0.9))
    pruner = Pruner(InfoBatch(), max_epochs=EPOCHS)
    loader = pruner.attach(fabric.setup_dataloaders(make_loader()))
    for _ in pruner.epochs():
        for batch in loader:
            loss = pruner.weighted_loss(model(batch))
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
    _, other, _ = in_a_loop(InfoBatch())
    assert torch.equal(task.layer.weight, other.layer.weight)


class PlainTask(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = PlainModel().layer

    def forward(self, batch):
        return F.cross_entropy(self.layer(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("callback", [InfoBatch(), lightning_prune.ScoreRegistry(), lightning_prune.PruningMonitor()])
def test_callbacks_in_fabric_say_what_to_use(callback):
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    task = PlainTask()
    with pytest.raises(
        MisconfigurationException, match=r"Expected a `lightning.pytorch.Trainer`.*lightning_prune.Pruner"
    ):
        fabric.setup(task, torch.optim.SGD(task.parameters(), 0.1))


class Hooked(PruningCallback):
    """Counts on a hook that only a Trainer calls."""

    def on_train_batch_end(self, *args):
        pass


@pytest.mark.parametrize(
    ("arguments", "kwargs", "error", "message"),
    [
        (["InfoBatch"], {"max_epochs": 1}, TypeError, r"Expected a pruning method, as in `Pruner\(InfoBatch"),
        ([InfoBatch()], {}, ValueError, "Expected `max_epochs` or `max_steps`, by which the run ends"),
        ([InfoBatch()], {"max_epochs": 0}, ValueError, "Expected `max_epochs` to be an int >= 1, but got 0"),
        ([InfoBatch()], {"max_epochs": 1, "seed": -1}, ValueError, "Expected `seed` to be an int >= 0"),
        ([InfoBatch()], {"max_epochs": 1, "accumulate_grad_batches": 0}, ValueError, "`accumulate_grad_batches`"),
        ([SelectiveBackprop()], {"max_epochs": 1}, ValueError, "since SelectiveBackprop picks within batches, but got"),
        ([IES()], {"max_epochs": 1}, ValueError, "since IES asks for the losses of skipped samples"),
        (
            [AlignPrune(InfoBatch(), "val_loss")],
            {"max_epochs": 1},
            ValueError,
            "its reference is the logged metric 'val",
        ),
        ([AlignPrune(InfoBatch(), "loader")], {"max_epochs": 1}, ValueError, "is `reference_dataloader\\(\\)`; use"),
        ([Hooked()], {"max_epochs": 1}, ValueError, "Hooked does not: it overrides `on_train_batch_end`"),
    ],
)
def test_refused_at_construction(arguments, kwargs, error, message):
    with pytest.raises(error, match=message):
        Pruner(*arguments, **kwargs)


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(8)


def test_refused_loaders():
    pruner = Pruner(InfoBatch(), max_epochs=1)
    with pytest.raises(RuntimeError, match=r"Expected a loader, `loader = pruner.attach"):
        next(pruner.epochs())
    with pytest.raises(TypeError, match=r"Expected a `torch.utils.data.DataLoader`, or what `fabric.*but got list"):
        pruner.attach([1, 2, 3])
    with pytest.raises(MisconfigurationException, match="Expected a map-style dataset"):
        pruner.attach(DataLoader(Stream(), 4))


def test_wrong_loops_are_told():  # noqa: C901  (one small function per mistake)
    def run(body):
        pruner = Pruner(Keep(0.5), max_epochs=2)
        loader = pruner.attach(make_loader())
        for _ in pruner.epochs():
            body(pruner, loader)

    layer = PlainModel().layer

    def other_loader(pruner, loader):
        for batch in make_loader():
            pruner.weighted_loss(F.cross_entropy(layer(batch[0]), batch[1], reduction="none"))

    def twice(pruner, loader):
        for _ in range(2):
            for _, _, ids in loader:
                pruner.weighted_loss(ids.float())

    def never_called(pruner, loader):
        for _ in loader:
            pass

    def scalar(pruner, loader):
        for _ in loader:
            pruner.weighted_loss(torch.tensor(1.0))

    def too_few(pruner, loader):
        for _ in loader:
            pruner.weighted_loss(torch.ones(3))

    def attach_again(pruner, loader):
        pruner.attach(make_loader())

    def load(pruner, loader):
        pruner.load_state_dict({"version": 2})

    for body, message in (
        (other_loader, "Expected epoch 0 to train on the loader that `pruner.attach` returned"),
        (lambda pruner, loader: None, "Expected epoch 0 to train on the loader that `pruner.attach` returned"),
        (twice, "once in each epoch, within"),
        (never_called, "to call `pruner.weighted_loss\\(losses\\)` for each batch, but it never did"),
        (attach_again, "Expected `attach` between epochs"),
        (load, "Expected `load_state_dict` before"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(body)
    with pytest.raises(ValueError, match="Expected one loss per sample.*pass it to `pruner.weighted_loss"):
        run(scalar)
    with pytest.raises(ValueError, match="Expected 4 losses.*`pruner.weighted_loss\\(losses, indices=indices\\)`"):
        run(too_few)
    with pytest.raises(RuntimeError, match="once in each epoch, within"):
        list(Pruner(Keep(0.5), max_epochs=1).attach(make_loader()))


def test_a_hook_that_gives_nothing_is_told():
    pruner = Pruner(SelectiveBackprop(start=0.0), max_epochs=1, per_sample_loss=lambda batch: None)
    loader, epochs = pruner.attach(make_loader()), pruner.epochs()
    next(epochs)
    with pytest.raises(RuntimeError, match=r"Expected `per_sample_loss\(batch\)` to return the losses"):
        list(loader)


def test_a_hook_may_return_losses():
    _, other, _ = in_a_loop(SelectiveBackprop(start=0.2))
    model = Bare()
    pruner = Pruner(
        SelectiveBackprop(start=0.2), max_epochs=EPOCHS, per_sample_loss=lambda b: PlainTask.forward(model, b)
    )
    train(pruner, make_loader(), model, model.configure_optimizers())
    assert model.seen == other.seen


@pytest.mark.ddp
def test_two_processes(tmp_path):
    """A plain loop with `DistributedDataParallel`, Fabric and the Trainer, under torchrun: the same, rank by rank."""
    torchrun("tests.loop_run", tmp_path, folder=tmp_path)
    for name in loop_run.METHODS:
        found = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob(f"{name}-*.pt")}
        assert len(found) == 6
        for rank in range(2):
            expected = found[f"{name}-trainer-{rank}"]
            assert 0 < expected["saved"] < 1
            for way in ("plain", "fabric"):
                got = found[f"{name}-{way}-{rank}"]
                assert torch.equal(got["weight"], expected["weight"])
                assert (got["seen"], got["saved"]) == (expected["seen"], expected["saved"])
                for column, values in expected["table"].items():
                    assert torch.equal(got["table"][column].nan_to_num(-1), values.nan_to_num(-1)), column
