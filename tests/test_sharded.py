"""`ScoreRegistry(sharded=True)`: each rank keeps the state of a part of the samples, and trains what all would."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import WeightedRandomSampler

from lightning_prune import (
    AlignPrune,
    ImportanceSampling,
    InfoBatch,
    LabelIssues,
    OrderDP,
    PruningCallback,
    RandomPruning,
    RePB,
    ScoreRegistry,
    Selection,
    SelectiveBackprop,
    SeTa,
)
from lightning_prune.cli import main
from lightning_prune.core.checks import LoaderError
from lightning_prune.core.stats import finite_mean
from lightning_prune.testing import processes
from lightning_prune.testing.method import step_of
from lightning_prune.testing.task import ScriptedModel, equal
from tests.helpers import Model, make_loader, make_trainer
from tests.processes import ROOT, stage

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*losses were NaN or infinite"),
]
NUM, EPOCHS, BATCH = 107, 3, 8
"""An odd number of samples: two ranks fill up the last batch."""
METHODS = {
    "none": lambda: None,
    "infobatch": lambda: InfoBatch(anneal_ratio=1.0),
    "bernoulli": lambda: InfoBatch(mode="bernoulli", anneal_ratio=1.0),
    "random": lambda: RandomPruning(rescale=True),
    "orderdp": OrderDP,
    "seta": lambda: SeTa(anneal_ratio=1.0),
    "repb": lambda: RePB(window_batches=2),
    "repb, importance": lambda: RePB(rule="importance", target_keep=0.6, max_weight=3.0),
    "repb, gradient": lambda: RePB(score="grad_norm"),
}


class Scripted(ScriptedModel):
    """Has a NaN, an infinite and many equal losses, and some samples that never give one."""

    def training_step(self, batch, batch_idx):
        losses = (self.losses(batch) * 8).round() / 8
        ids = batch[2]
        told = torch.where(ids == 5, torch.nan, torch.where(ids == 90, torch.inf, losses))
        mask = (ids % 17 != 3).expand(1, -1).T.float()
        loss = self.weighted_loss(told[:, None], mask=mask, **self.outputs)
        return loss if loss.isfinite() else 0 * losses.sum()


def fit(
    name,
    *,
    world_size=1,
    sharded=False,
    folder=None,
    ckpt_path=None,
    shuffle=True,
    keep=-1,
    model=None,
    callbacks=(),
    **options,
):
    registry, method = ScoreRegistry(sharded=sharded), METHODS[name]()
    callbacks = [registry, *([] if method is None else [method]), *callbacks]
    if folder is not None:
        options["default_root_dir"] = folder
        callbacks += [
            ModelCheckpoint(folder / "step", "{step}", every_n_train_steps=5, save_top_k=keep),
            ModelCheckpoint(folder / "end", "{step}", save_on_train_epoch_end=True, save_top_k=-1),
        ]
    if world_size > 1:
        options |= {"devices": world_size, "strategy": "ddp"}
    options = {"max_epochs": EPOCHS, "enable_checkpointing": folder is not None, **options}
    trainer = make_trainer(*callbacks, **options)
    model = model or Scripted(NUM)
    trainer.fit(model, make_loader(NUM, BATCH // world_size, shuffle=shuffle), ckpt_path=ckpt_path)
    return outcome(registry, model, trainer)


def outcome(registry, model, trainer):
    logged = trainer.callback_metrics.items()
    metrics = {key: float(v) for key, v in logged if key.startswith("prune/") and key != "prune/saved_seconds"}
    return {
        "table": registry.to_dict(),
        "state": dict(registry.state),
        "seen": model.seen,
        "selections": model.selections,
        "metrics": metrics,
        "start": registry.part.start,
        "saved": registry.saved_fraction,
    }


def assert_parts_of(whole, parts, *, order=True):
    """Assert that ranks with a part each know, have selected and have trained what those that know everything have."""
    for key, values in whole[0]["table"].items():
        joined = torch.cat([part["table"][key] for part in parts], dim=-1)
        assert equal(values, joined), key
    for part in parts:
        assert part["state"].keys() == whole[0]["state"].keys()
        assert all(equal(value, part["state"][key]) for key, value in whole[0]["state"].items())
        assert part["saved"] == whole[0]["saved"]
        assert part["metrics"].keys() == whole[0]["metrics"].keys()
        for key, value in whole[0]["metrics"].items():
            assert part["metrics"][key] == value, key
    before = len(whole[0]["selections"]) - len(parts[0]["selections"])
    for epoch, (ids, weights) in enumerate(whole[0]["selections"][before:]):
        assert torch.equal(ids, torch.cat([p["selections"][epoch][0] + p["start"] for p in parts])), epoch
        shares = [p["selections"][epoch][1] for p in parts]
        assert equal(weights, None if shares[0] is None else torch.cat(shares)), epoch
    if order:
        for one, other in zip(whole, parts, strict=True):
            assert one["seen"][-len(other["seen"]) :] == other["seen"]


def all_methods(rank, folder):
    torch.set_num_threads(1)
    found = {}
    for name in METHODS:
        for sharded in (False, True):
            found[name, sharded] = fit(name, world_size=2, sharded=sharded, shuffle=name != "random")
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.ddp
def test_two_ranks_with_a_part_each_train_what_two_with_everything_do(tmp_path):
    processes.skip_without_fork()
    processes.run_ranks(all_methods, tmp_path, folder=tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for name in METHODS:
        whole, parts = ([one[name, sharded] for one in found] for sharded in (False, True))
        assert [len(part["table"]["losses"]) for part in parts] == [56, 51]
        assert name == "none" or parts[0]["saved"] > 0
        assert_parts_of(whole, parts)


def resumes(rank, folder):
    """Save at steps and ends, and resume: from a middle, a last batch and an end of an epoch."""
    torch.set_num_threads(1)
    whole = fit("repb", world_size=2)
    saved = fit("repb", world_size=2, sharded=True, folder=folder)
    resumed = [fit("repb", world_size=2, sharded=True, ckpt_path=path) for path in chosen(folder)]
    torch.save((whole, saved, resumed), folder / f"{rank}.pt")


def chosen(folder):
    """Return checkpoints of a middle, a last batch and an end of the second epoch, which prunes."""
    states = {path: state_of(path) for path in sorted(folder.glob("step/*.ckpt"), key=step_of)}
    second = [path for path, state in states.items() if state["open"] and state["epoch"] == 1]
    return [second[1], second[-1], sorted(folder.glob("end/*.ckpt"), key=step_of)[1]]


def state_of(path):
    return torch.load(path, weights_only=True)["callbacks"]["ScoreRegistry"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of checkpoints that two ranks wrote, and what they and the runs resumed from them found."""
    processes.skip_without_fork()
    folder = tmp_path_factory.mktemp("saved")
    processes.run_ranks(resumes, folder, folder=folder)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.ddp
def test_two_ranks_go_on_from_a_middle_a_last_batch_and_an_end(saved):
    _, found = saved
    whole = [one[0] for one in found]
    assert_parts_of(whole, [one[1] for one in found])
    for number in range(3):
        parts = [one[2][number] for one in found]
        assert 0 < len(parts[0]["seen"]) < len(whole[0]["seen"])
        assert_parts_of(whole, parts)


@pytest.mark.ddp
def test_each_checkpoint_has_its_files_and_no_others_are_left(saved):
    folder, _ = saved
    paths = sorted(folder.glob("*/*.ckpt"))
    assert len(paths) > 4
    folders = {path for path in folder.rglob("*parts-*") if path.is_dir()}
    assert folders == {Path(f"{path}.{state_of(path)['parts']['name']}") for path in paths}
    for path in paths:
        assert not {"losses", "counts", "columns", "ranks"} & state_of(path).keys()
        assert sorted(file.name for file in Path(f"{path}.{state_of(path)['parts']['name']}").iterdir()) == [
            ".metadata",
            "__0_0.distcp",
            "__1_0.distcp",
        ]


@pytest.mark.ddp
def test_one_process_and_four_go_on_from_an_epoch_s_end_of_two(saved, tmp_path):
    folder, found = saved
    whole, end = found[0][0], chosen(folder)[2]
    assert_parts_of([whole], [fit("repb", sharded=True, ckpt_path=end)], order=False)
    processes.run_ranks(go_on, 4, end, tmp_path, folder=tmp_path, world_size=4)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(4)]
    assert len({part["start"] for part in parts}) == 4
    assert_parts_of([whole], parts, order=False)


def go_on(rank, world_size, path, folder):
    torch.set_num_threads(1)
    torch.save(fit("repb", world_size=world_size, sharded=True, ckpt_path=path), folder / f"{rank}.pt")


@pytest.mark.ddp
def test_one_process_goes_on_from_a_middle_of_two_and_two_from_a_middle_of_it(saved, tmp_path):
    """With 8 samples a step in all: what is known and selected is that of a run left alone."""
    folder, found = saved
    whole, two, middle = found[0][0], [one[1] for one in found], chosen(folder)[0]
    alone = fit("repb", sharded=True, ckpt_path=middle, folder=tmp_path)
    assert_parts_of([whole], [alone], order=False)
    before = [i for rank in two for epoch, ids in rank["seen"][: step_of(middle)] if epoch == 1 for i in ids]
    after = [i for epoch, ids in alone["seen"] if epoch == 1 for i in ids]
    assert before
    assert after
    assert sorted(before + after) == whole["selections"][1][0].tolist()  # each once
    later = next(path for path in sorted(tmp_path.glob("step/*.ckpt"), key=step_of) if step_of(path) > step_of(middle))
    state = state_of(later)
    assert (state["open"], state["epoch"], state["begun"]["log"]) == (True, 1, None)  # each process writes its own
    processes.run_ranks(go_on, 2, later, tmp_path, folder=tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert_parts_of([whole], parts, order=False)
    assert parts[0]["seen"] == two[0]["seen"][-len(parts[0]["seen"]) :]  # as those left alone


def killed(rank, world_size, folder, waits):
    """Be one of two ranks, which replace a checkpoint at each step; go on from it."""
    torch.set_num_threads(1)
    path = folder / "one" / "last.ckpt"

    class Waits(Scripted):
        def on_train_batch_start(self, *args):
            if waits and self.current_epoch == EPOCHS - 1:
                time.sleep(processes.PATIENCE)

    saves = [
        ModelCheckpoint(folder, "{step}", mode="max", every_n_train_steps=1, save_top_k=-1),  # counted
        ModelCheckpoint(path.parent, path.stem, every_n_train_steps=1, enable_version_counter=False),
    ]
    found = fit(
        "repb",
        world_size=world_size,
        sharded=True,
        ckpt_path=path if path.exists() else None,
        model=Waits(NUM),
        callbacks=saves,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.ddp
def test_a_kill_at_any_moment_leaves_a_checkpoint_with_its_files(saved, tmp_path):
    """Two ranks are killed at random moments of writing and training, and go on as if they had not been."""
    _, found = saved
    draw, steps = random.Random(0), []
    for _ in range(2):
        stage(killed, 2, tmp_path, 2 + draw.randrange(3), draw.random() * 0.03)
        path = tmp_path / "one" / "last.ckpt"
        steps.append(torch.load(path, weights_only=True)["global_step"])
        assert Path(f"{path}.{state_of(path)['parts']['name']}", ".metadata").exists()
    assert steps == sorted(set(steps))
    stage(killed, 2, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert_parts_of([one[0] for one in found], parts)


class Dying(TorchCheckpointIO):
    """Is killed when the eighth checkpoint replaces the seventh: before it is written, or as soon as it is."""

    def __init__(self, moment):
        self.moment = moment
        self.saves = 0

    def save_checkpoint(self, *args, **kwargs):
        self.saves += 1
        if self.saves == 8 and self.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().save_checkpoint(*args, **kwargs)
        if self.saves == 8:
            os.kill(os.getpid(), signal.SIGKILL)


def die(folder, moment):
    last = ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False)
    options = {"enable_checkpointing": True, "default_root_dir": folder, "plugins": [Dying(moment)]}
    fit("repb", sharded=True, callbacks=[last], **options)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_between_a_checkpoint_and_its_files(moment, tmp_path):
    """What is there is the new one or the one before, with files of its own."""
    processes.skip_without_fork()
    child = processes.fork(die, tmp_path, moment, log=tmp_path / "log")
    child.join()
    assert child.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == (7 if moment == "before" else 8)
    assert_parts_of([fit("repb")], [fit("repb", sharded=True, ckpt_path=path)])


def test_what_a_kill_left_is_removed_a_day_later(tmp_path):
    left, running = tmp_path / ".parts-0", tmp_path / ".parts-1"
    for folder, hours in ((left, 25), (running, 1)):
        folder.mkdir()
        os.utime(folder, 2 * (time.time() - 3600 * hours,))
    fit("repb", sharded=True, folder=tmp_path)
    assert [path.name for path in tmp_path.glob(".parts-*")] == [running.name]


@pytest.mark.ddp
def test_all_of_the_state_is_not_made_of_parts(saved):
    folder, _ = saved
    with pytest.raises(MisconfigurationException, match=r"resume with `ScoreRegistry\(sharded=True\)`.*but got"):
        fit("repb", ckpt_path=chosen(folder)[2])


def test_what_does_not_go_with_parts_is_refused(tmp_path):
    for arguments in ({"loader": ["a"]}, {"num_samples": 5}, {"debug_sync": True}):
        name = next(iter(arguments))
        with pytest.raises(ValueError, match=rf"`sharded=True` alone, but got it with `{name}`"):
            ScoreRegistry(sharded=True, **arguments)

    def refuses(match, *callbacks, loader=None, **options):
        trainer = make_trainer(ScoreRegistry(sharded=True), *callbacks, max_epochs=1, **options)
        with pytest.raises(MisconfigurationException, match=match):
            trainer.fit(Model(), loader or make_loader())

    refuses("got AlignPrune, which needs all of them. Leave out `sharded=True`", AlignPrune(InfoBatch()))
    refuses("got SelectiveBackprop, which needs all", SelectiveBackprop())
    refuses("got ImportanceSampling, which needs all", ImportanceSampling(num_outputs=3))
    refuses("got LabelIssues, which needs all of them.*or leave out the callback", InfoBatch(), LabelIssues())
    refuses("on a file system.*'memory://x'", InfoBatch(), default_root_dir="memory://x")
    drawn = WeightedRandomSampler([1.0] * 40, 40)
    refuses("shuffles or goes in order.*sampler", InfoBatch(), loader=make_loader(shuffle=False, sampler=drawn))


def test_a_rule_of_one_s_own_that_asks_the_registry_s_part():
    class AboveMean(PruningCallback):
        shares_state = True

        def select(self, registry, epoch, generator):
            least = finite_mean(registry.scores, registry.part)
            return Selection.from_mask(~(registry.scores < least))

    registry = ScoreRegistry(sharded=True)
    make_trainer(registry, AboveMean(), max_epochs=2).fit(Model(), make_loader())
    assert 0 < registry.saved_fraction < 0.5


def test_ids_given_with_a_batch_are_refused():
    class Gives(Model):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(self.losses(batch), indices=batch[2])

    with pytest.raises(LoaderError, match=r"no ids with `ScoreRegistry\(sharded=True\)`.*Leave `indices` out"):
        make_trainer(ScoreRegistry(sharded=True), max_epochs=1).fit(Gives(), make_loader())


def test_one_process_alone_saves_and_resumes_and_leaves_nothing(tmp_path):
    whole = fit("orderdp")
    parts = fit("orderdp", sharded=True, folder=tmp_path, keep=1)
    assert_parts_of([whole], [parts])
    [path] = tmp_path.glob("step/*.ckpt")
    assert_parts_of([whole], [fit("orderdp", sharded=True, ckpt_path=path)])
    assert sorted(found.name for found in tmp_path.iterdir()) == ["end", "step"]
    assert len(list((tmp_path / "step").iterdir())) == 2, "files of checkpoints that are gone"
    folder = next(found for found in (tmp_path / "step").iterdir() if found.is_dir())
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(MisconfigurationException, match=rf"folder '{folder}'.*not there. Copy it along"):
        fit("orderdp", sharded=True, ckpt_path=path)


def test_a_run_without_parts_goes_on_with_them_from_an_epoch_s_end(tmp_path):
    whole = fit("orderdp", folder=tmp_path)
    end, last = (sorted(tmp_path.glob(f"{kind}/*.ckpt"), key=step_of)[-2] for kind in ("end", "step"))
    assert_parts_of([whole], [fit("orderdp", sharded=True, ckpt_path=end)])
    with pytest.raises(MisconfigurationException, match="with which the checkpoint was written.*an epoch's end it may"):
        fit("orderdp", sharded=True, ckpt_path=last)


def test_a_checkpoint_outside_a_fit_says_that_it_knows_no_sample(tmp_path):
    trainer = make_trainer(ScoreRegistry(sharded=True), InfoBatch(), max_epochs=1)
    trainer.fit(Model(), make_loader())
    with pytest.warns(UserWarning, match="no per-sample state. Save in `on_train_end`"):
        trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = make_trainer(ScoreRegistry(sharded=True), InfoBatch(), max_epochs=2)
    with pytest.raises(MisconfigurationException, match="written outside `fit`, or after an exception"):
        resumed.fit(Model(), make_loader(), ckpt_path=tmp_path / "x.ckpt")


def test_each_rank_writes_its_part_of_the_table(tmp_path):
    registry = ScoreRegistry(sharded=True, save_to=tmp_path / "losses.npz")
    make_trainer(registry, max_epochs=1).fit(Model(), make_loader())
    with np.load(tmp_path / "losses-00000-of-00001.npz") as table:
        assert table["indices"].tolist() == list(range(40))
        assert np.array_equal(table["losses"], registry.losses.numpy())


def test_from_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    callbacks = [
        {"class_path": "InfoBatch", "init_args": {"anneal_ratio": 1.0}},
        {"class_path": "ScoreRegistry", "init_args": {"sharded": True, "save_to": "losses.npz"}},
    ]
    config = {
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "logger": False, "callbacks": callbacks},
        "model": {"class_path": "tests.helpers.ModelWithData"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(["fit", "--config", "config.yaml"])
    with np.load("losses-00000-of-00001.npz") as table:
        assert table["counts"].max() == 3
        assert table["counts"].min() < 3
    [checkpoint] = tmp_path.rglob("*.ckpt")
    assert state_of(checkpoint)["parts"]["name"]
