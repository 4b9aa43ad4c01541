"""Two gloo processes give the scores of one."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.testing.processes import run_ranks
from tests.scoring.ddp_case import run_all

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folders = {devices: tmp_path_factory.mktemp(f"devices{devices}") for devices in (1, 2)}
    run_ranks(lambda rank: run_all(2, folders[2]), folder=tmp_path_factory.mktemp("ranks"))
    run_all(1, folders[1])
    return {
        devices: {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
        for devices, folder in folders.items()
    }


@pytest.mark.parametrize("name", ["whole", "resumed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_scores(results, name, rank):
    one, two = results[1]["whole.0"], results[2][f"{name}.{rank}"]
    for method, scores in one.items():
        assert torch.equal(two[method], scores), method


def test_coreset(results):
    def trained(seen):
        return [{i for e, ids in seen if e == epoch for i in ids} for epoch in (0, 1)]

    one, first, second = results[1]["seen.0"], results[2]["seen.0"], results[2]["seen.1"]
    assert trained(first + second) == trained(one)
    assert len(trained(one)[0]) == 20
