"""Two nodes of two ranks each, as `torchrun --nnodes 2` starts them, under DDP and FSDP2: what one process selects.

Both nodes are on this machine; each has an agent of its own, and they meet by their rendezvous.
"""

from __future__ import annotations

import re
import socket
import time

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import DataLoader, Subset

from lightning_prune import InfoBatch, RandomPruning, ScoreRegistry
from lightning_prune.testing import processes
from lightning_prune.testing.task import ScriptedModel, equal
from tests.helpers import Keep, Model, make_dataset, make_loader, make_trainer, registry_of

pytestmark = pytest.mark.ddp
EPOCHS = 5
NODES = {"num_nodes": 2, "devices": 2, "max_epochs": EPOCHS}
POINTS = (7, 8)
"""Steps after which runs are resumed: a middle of an epoch, and its last batch."""


def all_ranks_shard():
    return ModelParallelStrategy(data_parallel_size=4, tensor_parallel_size=1)


def shard(module):
    """Split a module's parameters among all ranks, as its `configure_model` is to do."""
    from torch.distributed.fsdp import fully_shard

    if module.device_mesh is not None:  # else it is trained by DDP
        fully_shard(module.layer, mesh=module.device_mesh["data_parallel"])
        fully_shard(module, mesh=module.device_mesh["data_parallel"])


class Scripted(ScriptedModel):
    """Its losses are the same in every run."""

    def configure_model(self):
        shard(self)


class Learnt(Model):
    """Has one parameter: DDP adds up several in another order after its first step, resumed or not."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layer.bias = None

    def configure_model(self):
        shard(self)


SCRIPTED = {
    "ddp": (InfoBatch, "ddp", {}),
    "not_by_lightning": (InfoBatch, "ddp", {"use_distributed_sampler": False}),
    "fsdp": (InfoBatch, all_ranks_shard, {}),
    "fsdp_random": (lambda: RandomPruning(0.3), all_ranks_shard, {}),
}
"""Method, strategy, and arguments of the Trainer."""
RESUMED = {"ddp": "ddp", "fsdp": all_ranks_shard}
if not hasattr(torch.distributed.fsdp, "fully_shard"):  # before torch 2.6 it wants a GPU
    SCRIPTED = {name: case for name, case in SCRIPTED.items() if case[1] == "ddp"}
    RESUMED = {"ddp": "ddp"}


def run_scripted(method, strategy, options, folder):
    registry = ScoreRegistry(debug_sync=True, save_to=folder / "table.npz")
    strategy = strategy if isinstance(strategy, str) else strategy()
    trainer, model = make_trainer(registry, method(), strategy=strategy, **NODES, **options), Scripted(40)
    trainer.fit(model, make_loader())
    where = (trainer.global_rank, trainer.node_rank, trainer.local_rank, trainer.world_size)
    found = {"seen": model.seen, "selections": model.selections, "table": registry.to_dict(), "where": where}
    return found | {"leaves": registry.leaves, "sharded": type(model.layer.weight).__name__}


def run_learnt(strategy, folder, ckpt_path=None):
    checkpoints = []
    if ckpt_path is None:
        checkpoints = [ModelCheckpoint(folder, "{step}", every_n_train_steps=step, save_top_k=-1) for step in POINTS]
    strategy = strategy if isinstance(strategy, str) else strategy()
    options = {"enable_checkpointing": ckpt_path is None, **NODES}
    trainer = make_trainer(InfoBatch(seed=2), *checkpoints, strategy=strategy, **options)
    model = Learnt(dropout=0.2)
    torch.manual_seed(10 + trainer.global_rank)
    trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
    weights = {name: getattr(w, "full_tensor", lambda w=w: w)().clone() for name, w in model.state_dict().items()}
    return {"seen": model.seen, "weights": weights, "table": registry_of(trainer).to_dict()}


def refusal(trainer, model, loader):
    with pytest.raises(MisconfigurationException) as told:
        trainer.fit(model, loader)
    return str(told.value)


class EachNodeItsOwn(L.LightningDataModule):
    """Each node reads a half of the data."""

    def train_dataloader(self):
        first = 20 * self.trainer.node_rank
        return DataLoader(Subset(make_dataset(), range(first, first + 20)), 4)


def refusals():
    shared = ModelParallelStrategy()  # by default the ranks of a node share the model
    yield "shared", refusal(make_trainer(Keep(0.5), strategy=shared, **NODES), Learnt(), make_loader())
    trainer = make_trainer(Keep(0.5), strategy="ddp", use_distributed_sampler=False, **NODES)
    yield "own_data", refusal(trainer, Model(), EachNodeItsOwn())


def run_rank(folder):
    torch.set_num_threads(1)
    found = {name: run_scripted(*case, folder / name) for name, case in SCRIPTED.items()}
    for name, strategy in RESUMED.items():
        found[f"whole {name}"] = run_learnt(strategy, folder / name)
        for point in POINTS:
            path = folder / name / f"step={point}.ckpt"
            found[f"resumed {name} {point}"] = run_learnt(strategy, folder / "resumed", path)
    found["refusals"] = dict(refusals())
    torch.save(found, folder / f"rank{found['ddp']['where'][0]}.pt")


def run_node(node, port, folder):
    """Be the agent of a node, as torchrun is, but for its fresh interpreters."""
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=2,
        run_id="pruned",
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        rdzv_configs={"is_host": node == 0},
        monitor_interval=0.05,
        start_method="fork",
    )
    elastic_launch(config, run_rank)(folder)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    processes.skip_without_fork()
    folder = tmp_path_factory.mktemp("nodes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [folder / f"node{node}.log" for node in range(2)]
    nodes = [processes.fork(run_node, node, port, folder, log=log) for node, log in enumerate(logs)]
    end_at = time.monotonic() + processes.PATIENCE
    try:
        while any(node.is_alive() for node in nodes) and not any(node.exitcode for node in nodes):
            assert time.monotonic() < end_at, "the nodes hang"
            nodes[0].join(0.1)
    finally:
        failed = any(node.exitcode for node in nodes)
        for node in nodes:
            node.terminate()  # agents end their ranks
            node.join()
    assert not failed, "\n".join(log.read_text() for log in logs)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(4)]


@pytest.mark.parametrize("name", SCRIPTED)
def test_four_ranks_of_two_nodes_select_what_one_process_does(ranks, name):
    method, strategy, _ = SCRIPTED[name]
    alone, registry = ScriptedModel(40), ScoreRegistry()
    make_trainer(registry, method(), max_epochs=EPOCHS).fit(alone, make_loader())
    assert [rank[name]["where"] for rank in ranks] == [(0, 0, 0, 4), (1, 0, 1, 4), (2, 1, 0, 4), (3, 1, 1, 4)]
    for rank in ranks:
        assert rank[name]["sharded"] == ("Parameter" if strategy == "ddp" else "DTensor")
        for (indices, weights), (its_indices, its_weights) in zip(
            alone.selections, rank[name]["selections"], strict=True
        ):
            assert torch.equal(indices, its_indices)
            assert equal(weights, its_weights)
        for key, values in registry.to_dict().items():
            assert equal(values, rank[name]["table"][key]), key
    for epoch, (indices, _) in enumerate(alone.selections):
        shards = [[i for e, ids in rank[name]["seen"] if e == epoch for i in ids] for rank in ranks]
        assert {len(shard) for shard in shards} == {-(-len(indices) // 4)}
        assert set().union(*shards) == set(indices.tolist())


def test_one_rank_of_all_nodes_writes_the_table(ranks):
    assert [len(rank["ddp"]["leaves"]) for rank in ranks] == [1, 0, 0, 0]


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("point", POINTS)
def test_resume_on_two_nodes_is_exact(ranks, name, point):
    for rank in ranks:
        whole, resumed = rank[f"whole {name}"], rank[f"resumed {name} {point}"]
        assert resumed["seen"]
        assert resumed["seen"] == whole["seen"][-len(resumed["seen"]) :]
        assert all(torch.equal(values, resumed["weights"][key]) for key, values in whole["weights"].items())
        assert all(equal(values, resumed["table"][key]) for key, values in whole["table"].items())


def test_what_is_refused_on_every_rank(ranks):
    told = {name: {rank["refusals"][name] for rank in ranks} for name in ranks[0]["refusals"]}
    expected = {
        "shared": r"Expected each of the 4 processes to train batches of its own, but `ModelParallelStrategy` has them "
        r"share 2 part\(s\).*`ModelParallelStrategy\(data_parallel_size=4, tensor_parallel_size=1\)`",
        "own_data": r"Expected a loader of the whole dataset, the same on each of the 4 processes",
    }
    for name, pattern in expected.items():
        assert len(told[name]) == 1
        assert re.search(pattern, *told[name])


def test_fsdp_1_is_not_for_the_cpu():
    """Which is why it is not tried here; docs/reliability.md says so."""
    with pytest.raises(ValueError, match="The strategy `fsdp` requires a GPU accelerator"):
        make_trainer(strategy="fsdp")
