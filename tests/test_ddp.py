"""Two gloo processes, in kinds of runs beside the contract's: the same selections, weights and registry on both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightning_prune import InfoBatch, RandomPruning
from lightning_prune.core.rng import make_generator
from lightning_prune.methods.infobatch import infobatch
from lightning_prune.testing.processes import run_ranks
from tests.ddp_cases import CASES, run_rank
from tests.helpers import Model, make_loader, make_trainer, registry_of

pytestmark = pytest.mark.ddp
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks(run_rank, folder, folder=folder)
    found = {path.name[: -len(".pt")]: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}
    return {"folder": folder, **found}


def ranks(results, name):
    return results[f"{name}.0"], results[f"{name}.1"]


def equal(a, b):
    return (a is None and b is None) or torch.equal(a, b) or torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))


@pytest.mark.parametrize("name", CASES)
def test_ranks_agree(results, name):
    first, second = ranks(results, name)
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert torch.equal(a["indices"], b["indices"])
        assert equal(a["weights"], b["weights"])
        assert a["batches"] == b["batches"]
    for key, values in first["table"].items():
        assert equal(values, second["table"][key]), key
    for key, values in first["weights"].items():
        assert torch.equal(values, second["weights"][key])
    assert first["saved"] == second["saved"]


@pytest.mark.parametrize("name", CASES)
def test_shards_partition_the_selection(results, name):
    first, second = ranks(results, name)
    for epoch, info in enumerate(first["epochs"]):
        shards = [[i for e, ids in r["seen"] if e == epoch for i in ids] for r in (first, second)]
        assert len(shards[0]) == len(shards[1]) == -(-len(info["indices"]) // 2)
        assert set(shards[0]) | set(shards[1]) == set(info["indices"].tolist())
        assert len(set(shards[0]) & set(shards[1])) <= len(info["indices"]) % 2


@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_that_of_its_sample(results, name):
    first, second = ranks(results, name)
    recorded = first["table"]["losses"]
    for index, value in enumerate(recorded.tolist()):
        true = [r["true_losses"][index] for r in (first, second) if index in r["true_losses"]]
        assert any(value == pytest.approx(t, rel=1e-6) for t in true) if true else value != value


@pytest.mark.parametrize("name", CASES)
def test_one_collective_an_epoch_and_none_a_step(results, name):
    for info in ranks(results, name)[0]["epochs"]:
        assert info["collectives"] == ["all_gather_into_tensor"]


def test_selection_is_that_of_one_process_with_the_same_scores(results):
    for epoch, info in enumerate(ranks(results, "infobatch")[0]["epochs"][:3]):
        expected = infobatch(info["before"]["losses"], 0.5, generator=make_generator(0, epoch, "select"))
        assert torch.equal(info["indices"], expected.indices)
        if epoch == 0:  # nothing is known yet
            assert info["weights"] is None
            assert bool((expected.weights == 1).all())
        else:
            assert torch.equal(info["weights"], expected.weights)


def test_random_selection_does_not_depend_on_the_world_size(results):
    seen = {}

    class Watch(RandomPruning):
        def select(self, registry, epoch, generator):
            seen[epoch] = super().select(registry, epoch, generator)
            return seen[epoch]

    make_trainer(Watch(0.3)).fit(Model(), make_loader())
    for epoch, info in enumerate(ranks(results, "random")[0]["epochs"]):
        assert torch.equal(info["indices"], seen[epoch].indices)


def test_two_ranks_of_half_batches_train_like_one_process(results):
    """Batch 2 on two ranks is batch 4 on one: the same samples a step, so the same registry up to rounding."""
    model, trainer = Model(), make_trainer(CASES["halves"][0](), accumulate_grad_batches=3)
    trainer.fit(model, make_loader(batch_size=4))
    table = ranks(results, "halves")[0]["table"]
    assert torch.equal(registry_of(trainer).counts, table["counts"])
    assert torch.allclose(registry_of(trainer).losses, table["losses"], rtol=1e-4)


def assert_resumed(whole, resumed):
    assert resumed["seen"]
    assert resumed["seen"] == whole["seen"][-len(resumed["seen"]) :]
    for key, values in whole["table"].items():
        assert equal(values, resumed["table"][key]), key
    for key, values in whole["weights"].items():
        assert torch.equal(values, resumed["weights"][key]), key
    assert whole["saved"] == resumed["saved"]
    assert whole["lrs"][-len(resumed["lrs"]) :] == resumed["lrs"]


@pytest.mark.parametrize("point", ["boundary", "middle", "last_batch"])
def test_resume_is_exact(results, point):
    for rank in (0, 1):
        assert_resumed(results[f"uninterrupted.{rank}"], results[f"resumed_{point}.{rank}"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_train_alike(results):
    """`ddp_fork` and `ddp_spawn` return weights and metrics; the registry was in the other processes."""
    trainer, model = make_trainer(CASES["infobatch"][0](), devices=2, strategy="ddp_fork"), Model()
    trainer.fit(model, make_loader())
    for key, values in results["infobatch.0"]["weights"].items():
        assert torch.equal(values, model.state_dict()[key])
    assert trainer.callback_metrics["prune/saved_fraction"] == pytest.approx(results["infobatch.0"]["saved"])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_another_number_of_processes(results):
    """At an epoch's end, and in the middle of one: what is left is for those that there are now."""

    def resume(path, **kwargs):
        trainer, model = make_trainer(InfoBatch(seed=2), max_epochs=5), Model()
        trainer.fit(model, make_loader(**kwargs), ckpt_path=results["folder"] / "uninterrupted" / path)
        return registry_of(trainer), model

    registry, model = resume("end-step=5.ckpt")
    assert {epoch for epoch, _ in model.seen} == {1, 2, 3, 4}
    trained = [results[f"uninterrupted.{rank}"]["seen"] for rank in (0, 1)]
    assert set(model.epoch_ids(1)) == {i for seen in trained for epoch, ids in seen if epoch == 1 for i in ids}
    assert registry.counts.sum() == 40 + sum(len(ids) for _, ids in model.seen)
    for batch_size in (4, 8):
        _, model = resume("step=7.ckpt", batch_size=batch_size)
        before = {i for seen in trained for _, ids in seen[5:7] for i in ids}
        assert not before & set(model.epoch_ids(1))
        assert before | set(model.epoch_ids(1)) == {i for seen in trained for e, ids in seen if e == 1 for i in ids}
