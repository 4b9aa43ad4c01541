"""Every method on a GPU: the CPU's results, no step that waits, exact resume, NCCL; skipped where there is none."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from benchmarks.gpu import GPU, no_wait
from lightning_prune import InfoBatch, ScoreRegistry
from tests import contract
from tests.devices import train, train_beside
from tests.helpers import Model, make_loader, make_trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
CASES = [case for case in contract.CASES if case not in contract.FROM_FILES]


def on_gpu():
    return {"accelerator": "gpu", "devices": 1}


def refuse_to_wait(into):
    """Raise where code waits for the GPU."""
    return no_wait(GPU)


def anything(into):
    return nullcontext()


def assert_same(there, here):
    """Up to the rounding of a matrix product."""
    assert there.keys() == here.keys()
    for name, values in here.items():
        torch.testing.assert_close(there[name].cpu(), values.cpu(), equal_nan=True, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_the_cpu_and_no_step_waits(case):
    here = train(contract.make(case), anything, anything)
    there = train(contract.make(case), refuse_to_wait, anything, **on_gpu())
    assert there["device"] == "cuda"
    assert there["seen"] == here["seen"]
    assert there["saved"] == here["saved"]
    assert_same(there["weights"], here["weights"])
    assert_same(there["table"], here["table"])


def test_scores_labels_monitor_report_and_resume(tmp_path):
    """All that looks on knows what it knows on the CPU, makes no step wait, and goes on from a checkpoint."""
    here = train_beside(tmp_path / "cpu", anything, dict)
    there = train_beside(tmp_path / "cuda", refuse_to_wait, on_gpu)
    assert there["saved on"] == "cpu"  # a checkpoint loads anywhere
    assert_same(there["whole"]["found"], here["whole"]["found"])
    for name, values in there["whole"]["found"].items():
        torch.testing.assert_close(there["resumed"]["found"][name], values, rtol=0, atol=0, equal_nan=True, msg=name)


def test_the_refusal_to_wait_can_fail():
    with pytest.raises(RuntimeError, match="synchronizing"), refuse_to_wait(None):
        torch.ones(3, device="cuda").sum().item()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_group_of_one_process_by_nccl(sharded):
    found = []
    for strategy in ("auto", "ddp"):
        registry, model = ScoreRegistry(sharded=sharded and strategy == "ddp"), Model()
        trainer = make_trainer(registry, InfoBatch(seed=2), strategy=strategy, **on_gpu())
        trainer.fit(model, make_loader())
        found.append((model.seen, registry.saved_fraction, model.state_dict()))
    assert torch.distributed.get_backend() == "nccl"
    torch.distributed.destroy_process_group()
    assert found[0][:2] == found[1][:2]
    assert found[0][1] > 0.1
    assert_same(found[1][2], found[0][2])
