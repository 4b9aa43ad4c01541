"""Batches of which a part is trained: what the module sees, what is counted, and what must not be touched."""

from __future__ import annotations

import collections
import copy

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PruningCallback, ScoreRegistry, SelectiveBackprop, WeightedLossMixin
from lightning_prune.core.step import Probed
from lightning_prune.trainer.probe import PickingStep, evaluating, probe, take_samples
from tests.helpers import Model, PlainModel, make_dataset, make_loader, make_trainer, registry_of


class First(PruningCallback):
    """Trains the first ``k`` samples of each batch of every epoch but the first."""

    picks_in_batch = True
    needs_mixin = False

    def __init__(self, k: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.k = k
        self.asked = []

    def picks_now(self, registry, epoch, batch_idx):
        return epoch > 0

    def pick(self, step, generator):
        self.asked.append((step.indices.tolist(), step.recorded_losses.tolist()))
        return torch.arange(min(self.k, len(step.recorded_losses)))


class Noted(WeightedLossMixin, L.LightningModule):
    """Has everything that a second pass could disturb: BatchNorm, dropout, a log call, a frozen part in eval mode."""

    def __init__(self, lr=0.05):
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5))
        self.frozen = torch.nn.Dropout(0.5).eval()
        self.head = torch.nn.Linear(16, 2)
        self.lr = lr
        self.trained, self.probed, self.modes = [], [], set()

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        logits = self.head(self.frozen(self.body(x)))
        losses = F.cross_entropy(logits, y, reduction="none")
        (self.trained if self.training else self.probed).append((self.current_epoch, index.tolist()))
        self.modes.add((self.training, self.body.training, self.frozen.training, torch.is_grad_enabled()))
        self.log("train_loss", losses.mean(), on_step=True, on_epoch=True)
        return self.weighted_loss(losses)

    def on_train_epoch_start(self):
        self.frozen.eval()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def batches(model, epoch):
    return [ids for e, ids in model.trained if e == epoch]


def test_only_the_picked_are_trained_and_counted():
    method, model = First(3), Noted()
    trainer = make_trainer(method, max_epochs=3)
    trainer.fit(model, make_loader(batch_size=7))  # batches of 7, 7, 7, 7, 7, 5
    registry = registry_of(trainer)
    probes = [ids for _, ids in model.probed]
    assert [len(ids) for ids in batches(model, 0)] == [7] * 5 + [5]
    for epoch in (1, 2):
        whole = [ids for e, ids in model.probed if e == epoch]
        assert sorted(i for ids in whole for i in ids) == list(range(40))
        assert batches(model, epoch) == [ids[:3] for ids in whole]
    assert [ids for ids, _ in method.asked] == probes
    assert registry.counts.tolist() == [3] * 40
    assert registry.saved_fraction == pytest.approx(1 - (40 + 18 + 18) / 120)
    assert trainer.logged_metrics["prune/kept_fraction"] == pytest.approx(18 / 40)


def test_losses_of_the_trained_are_recorded_from_the_step_itself():
    class Step(Noted):
        true = {}

        def weighted_loss(self, losses, **kwargs):
            if self.training:
                self.true |= dict(zip(self.trained[-1][1], losses.tolist(), strict=True))
            return super().weighted_loss(losses, **kwargs)

    trainer = make_trainer(First(2), max_epochs=3)
    model = Step()
    trainer.fit(model, make_loader())
    assert registry_of(trainer).losses.tolist() == pytest.approx([model.true[i] for i in range(40)])


def test_probing_disturbs_nothing(tmp_path):
    model = Noted()
    trainer = make_trainer(First(2), max_epochs=3, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(model, make_loader())
    assert int(model.body[1].num_batches_tracked) == 30 == trainer.global_step
    assert model.modes == {(True, True, False, True), (False, False, False, False)}
    assert model.training
    assert not model.frozen.training
    trainer.logger.save()
    lines = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    column = lines[0].split(",").index("train_loss_step")
    assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 30


def test_equal_to_training_on_the_parts_alone():
    """A plain loop over the same parts gives the same weights, BatchNorm statistics included."""

    class Plain(Noted):
        def __init__(self):
            super().__init__()
            self.body[2].p = 0.0

    model = Plain()
    make_trainer(First(2), max_epochs=3).fit(model, make_loader())
    other = Plain()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
    x, y, _ = make_dataset().tensors
    other.frozen.eval()
    for _, ids in model.trained:
        optimizer.zero_grad()
        F.cross_entropy(other.head(other.frozen(other.body(x[ids]))), y[ids]).backward()
        optimizer.step()
    for name, value in other.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name


def test_mixed_precision_keeps_its_gradients():
    """Autocast must not hand the step the weights that it cast without a graph for the probe."""
    model = Noted()
    before = copy.deepcopy(model.state_dict())
    make_trainer(First(2), max_epochs=2, precision="bf16-mixed", limit_train_batches=5).fit(model, make_loader())
    half = copy.deepcopy(before)
    other = Noted()
    make_trainer(First(2), max_epochs=1, precision="bf16-mixed", limit_train_batches=5).fit(other, make_loader())
    first_epoch = other.state_dict()
    for name in ("body.0.weight", "head.weight"):
        assert not torch.equal(half[name], first_epoch[name])
        assert not torch.equal(first_epoch[name], model.state_dict()[name]), name


def test_accumulation_and_manual_optimization():
    class Manual(Noted):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    for model, kwargs in ((Noted(), {"accumulate_grad_batches": 3}), (Manual(), {})):
        trainer = make_trainer(First(2), max_epochs=2, **kwargs)
        trainer.fit(model, make_loader())
        assert [len(ids) for ids in batches(model, 1)] == [2] * 10
        assert registry_of(trainer).saved_fraction == pytest.approx(0.25)


class Hook(PlainModel):
    """No mixin: the losses come from the hook."""

    def __init__(self):
        super().__init__()
        self.hooked = 0

    def per_sample_loss(self, batch):
        self.hooked += 1
        x, y, _ = batch
        return F.cross_entropy(self.layer(x), y, reduction="none")


class HookAndMixin(WeightedLossMixin, Hook):
    def training_step(self, batch, batch_idx):
        return self.weighted_loss(self.losses(batch))


@pytest.mark.parametrize("model_class", [Hook, HookAndMixin])
def test_the_hook_is_asked_if_there_is_one(model_class):
    model, method = model_class(), First(2)
    trainer = make_trainer(method, max_epochs=2)
    trainer.fit(model, make_loader())
    assert model.hooked == len(method.asked) == 10
    assert [len(ids) for e, ids in model.seen if e == 1] == [2] * 10
    assert registry_of(trainer).saved_fraction == pytest.approx(0.25)


def test_a_module_that_declares_nothing_is_told_which_hook_to_write():
    with pytest.raises(MisconfigurationException, match=r"per_sample_loss\(batch\)"):
        make_trainer(SelectiveBackprop()).fit(PlainModel(), make_loader())


def test_a_step_that_never_calls_weighted_loss():
    class Forgetful(WeightedLossMixin, PlainModel):
        pass

    with pytest.raises(RuntimeError, match="never did"):
        make_trainer(First(2), max_epochs=2).fit(Forgetful(), make_loader())


def test_probe_of_such_a_step():
    class Forgetful(WeightedLossMixin, PlainModel):
        def training_step(self, batch):
            return self.losses(batch).mean()

    with pytest.raises(MisconfigurationException, match=r"`Forgetful` does not give them.*weighted_loss"):
        probe(Forgetful(), make_dataset()[:4])


def test_a_hook_with_too_few_losses():
    class Wrong(Hook):
        def per_sample_loss(self, batch):
            return super().per_sample_loss(batch)[:3]

    with pytest.raises(ValueError, match="Expected 4 losses"):
        make_trainer(First(2), max_epochs=2).fit(Wrong(), make_loader())


def test_no_exception_handler_of_the_user_stops_a_probe():
    assert not issubclass(Probed, Exception)


def test_several_loaders_are_refused():
    with pytest.raises(MisconfigurationException, match="Expected one train DataLoader, since First"):
        make_trainer(ScoreRegistry(loader=0), First(2)).fit(Model(), [make_loader(), make_loader()])


def test_the_module_gets_its_step_back():
    model = Noted()
    trainer = make_trainer(First(2), max_epochs=2)
    trainer.fit(model, make_loader())
    assert "training_step" not in vars(model)

    class Failing(Noted):
        def training_step(self, batch, batch_idx):
            if self.current_epoch == 1:
                raise RuntimeError("mine")
            return super().training_step(batch, batch_idx)

    model = Failing()
    with pytest.raises(RuntimeError, match="mine"):
        make_trainer(First(2), max_epochs=2).fit(model, make_loader())
    assert "training_step" not in vars(model)
    assert model.training


def test_a_copy_of_the_module_has_its_own_plain_step():
    """As EMA and SWA callbacks, and strategies that pickle the module, make it."""
    copies = []

    class Copying(Noted):
        def on_train_batch_end(self, *args):
            step = vars(self)["training_step"]
            make, parts = step.__reduce__()
            copies.append((copy.deepcopy(step), make(*parts)))
            assert isinstance(step, PickingStep)

    make_trainer(First(2), max_epochs=1, limit_train_batches=1).fit(Copying(), make_loader())
    assert all(step.__func__ is Copying.training_step for pair in copies for step in pair)
    assert len(copies) == 1


class Compilable(WeightedLossMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        return self.weighted_loss(F.cross_entropy(self.layer(batch[0]), batch[1], reduction="none"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_compiled_module():
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        pytest.skip("torch 2.4 guards on a module's identity")
    compiled = torch.compile(Compilable(), backend="eager")
    trainer = make_trainer(First(2), max_epochs=2)
    trainer.fit(compiled, make_loader())
    assert registry_of(trainer).saved_fraction == pytest.approx(0.25)
    assert trainer.global_step == 20


def test_warmup_epochs_train_everything():
    model = Noted()
    make_trainer(First(2, warmup_epochs=2), max_epochs=3).fit(model, make_loader())
    assert {e for e, _ in model.probed} == {2}


def test_a_dict_batch_with_a_tail():
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return {"x": torch.randn(8), "y": i % 2, "name": f"sample {i}"}

    names = []

    class Dicts(WeightedLossMixin, PlainModel):
        def training_step(self, batch):
            if self.training:
                names.append(batch["name"])
            return self.weighted_loss(F.cross_entropy(self.layer(batch["x"]), batch["y"], reduction="none"))

    make_trainer(First(3), max_epochs=2).fit(Dicts(), DataLoader(Items(), 4, shuffle=True))
    assert [len(part) for part in names] == [4, 4, 2, 3, 3, 2]


Pair = collections.namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.arange(4), torch.tensor([2, 0])),
        ([torch.arange(4), torch.ones(())], [torch.tensor([2, 0]), torch.ones(())]),
        (Pair(torch.arange(8).view(4, 2), "abcd"), Pair(torch.tensor([[4, 5], [0, 1]]), "abcd")),
        ({"a": [1, 2, 3, 4], "b": {"c": torch.arange(4)}}, {"a": [3, 1], "b": {"c": torch.tensor([2, 0])}}),
        (
            [{"boxes": torch.zeros(i, 4)} for i in range(4)],
            [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(0, 4)}],
        ),
        ((torch.arange(4), [torch.arange(4), 5]), (torch.tensor([2, 0]), [torch.tensor([2, 0]), 5])),
    ],
    ids=["tensor", "list", "namedtuple", "dict", "list of dicts", "nested"],
)
def test_take_samples(batch, expected):
    taken = take_samples(batch, torch.tensor([2, 0]), 4)
    assert type(taken) is type(expected)
    assert flat(taken) == flat(expected)


def flat(value):
    if isinstance(value, torch.Tensor):
        return value.tolist(), list(value.shape)
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, list | tuple) else value


def test_a_batch_that_cannot_be_taken_apart():
    with pytest.raises(ValueError, match=r"take_samples\(batch, positions\)"):
        take_samples({"graph": object()}, torch.tensor([0]), 4)


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")
def test_a_module_takes_its_own_batches_apart():
    class Graphs(Noted):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"packed": batch, "n": len(batch[0])}

        def take_samples(self, batch, positions):
            return {"packed": [part[positions] for part in batch["packed"]], "n": len(positions)}

        def training_step(self, batch, batch_idx):
            return super().training_step(batch["packed"], batch_idx)

    model = Graphs()
    make_trainer(First(2), max_epochs=2).fit(model, make_loader())
    assert [len(ids) for ids in batches(model, 1)] == [2] * 10


def test_evaluating_restores_each_child_also_after_an_error():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with pytest.raises(RuntimeError, match="training: False"), evaluating(module):
        raise RuntimeError(f"training: {module[0].training}")
    assert [part.training for part in module.modules()] == [True, True, False]


def test_samples_that_the_batch_lost_are_refused():
    """The probe sees fewer samples than the sampler drew: the positions would be those of others."""

    def drop(items):
        return torch.utils.data.default_collate(items[:-1])

    data = TensorDataset(*make_dataset().tensors)
    with pytest.raises(ValueError, match="Expected 4 losses"):
        make_trainer(First(2, warmup_epochs=0), max_epochs=1).fit(Model(), DataLoader(data, 4, collate_fn=drop))
