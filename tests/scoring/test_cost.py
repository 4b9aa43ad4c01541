"""What the greedy rules may hold at n = 50,000, D = 128: nothing of n times n. For their times: benchmarks."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import contextual_diversity, herding, kcenter, prune4rel
from lightning_prune.testing.processes import fork

RULES = {
    "kcenter": lambda x, probs: kcenter(x, 5, first=0),
    "herding": lambda x, probs: herding(x, 5),
    "prune4rel": lambda x, probs: prune4rel(probs, x, 5),
    "contextual_diversity": lambda x, probs: contextual_diversity(probs, 5, first=0),
}


def peak_gibibytes() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def measure(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 128, generator=generator)
    probs = torch.randn(50_000, 10, generator=generator).softmax(1)
    before = peak_gibibytes()
    RULES[name](x, probs)
    print("GiB:", peak_gibibytes() - before)


@pytest.mark.parametrize("name", RULES)
def test_memory(name, tmp_path):
    child = fork(measure, name, log=tmp_path / "log")
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()
    assert float((tmp_path / "log").read_text().split("GiB:")[1]) < 0.25  # n * n floats are 9.3
