"""`ScoreRegistry(sharded=True)`: each rank keeps the state of a part of the samples, and trains what all would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import InfoBatch, OrderDP, RandomPruning, RePB, ScoreRegistry
from lightning_prune.testing import processes
from lightning_prune.testing.method import step_of
from lightning_prune.testing.task import ScriptedModel, equal
from tests.helpers import make_loader, make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
NUM, EPOCHS, BATCH = 203, 4, 8
"""An odd number of samples: two ranks fill up the last batch."""
METHODS = {
    "none": lambda: None,
    "infobatch": lambda: InfoBatch(anneal_ratio=1.0),
    "bernoulli": lambda: InfoBatch(mode="bernoulli", warmup_epochs=2),
    "random": lambda: RandomPruning(rescale=True),
    "orderdp": OrderDP,
    "repb": lambda: RePB(window_batches=2),
    "repb, importance": lambda: RePB(rule="importance", target_keep=0.6, max_weight=3.0),
    "repb, gradient": lambda: RePB(score="grad_norm"),
}


class Scripted(ScriptedModel):
    """Has a NaN, an infinite and many equal losses, and some samples that never give one."""

    def training_step(self, batch, batch_idx):
        losses = (self.losses(batch) * 8).round() / 8
        ids = batch[2]
        told = torch.where(ids == 5, torch.nan, torch.where(ids == 150, torch.inf, losses))
        mask = (ids % 17 != 3).expand(1, -1).T.float()
        loss = self.weighted_loss(told[:, None], mask=mask, **self.outputs)
        return loss if loss.isfinite() else 0 * losses.sum()


def fit(name, *, world_size=1, sharded=False, folder=None, ckpt_path=None, shuffle=True, **options):
    registry, method = ScoreRegistry(sharded=sharded), METHODS[name]()
    callbacks = [registry, *([] if method is None else [method])]
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1))
    if world_size > 1:
        options |= {"devices": world_size, "strategy": "ddp"}
    options = {"max_epochs": EPOCHS, "enable_checkpointing": folder is not None, **options}
    if folder is not None:
        options["default_root_dir"] = folder
    trainer = make_trainer(*callbacks, **options)
    model = Scripted(NUM)
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
    begun = len(parts[0]["selections"])
    for epoch, (ids, weights) in enumerate(whole[0]["selections"][-begun:]):
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
        assert [len(part["table"]["losses"]) for part in parts] == [102, 101]
        assert name == "none" or parts[0]["saved"] > 0
        assert_parts_of(whole, parts)
