"""Every method on a device that is not the CPU: no tensor on the wrong one, the same results, no step that waits."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_prune.testing.processes import fork
from tests import contract, emulated_networks, emulated_streams
from tests.devices import EPOCHS, NUM_SAMPLES, train, train_beside
from tests.processes import ROOT, python

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs torch 2.9"
)
WORDS = NUM_SAMPLES // 10
"""Elements from which a copy counts as one of O(n): a batch has 10."""


def train_all(folder):
    from tests.emulated_device import counted, on_device

    warnings.simplefilter("ignore")
    for case in contract.CASES:
        if case in contract.FROM_FILES:
            continue
        torch.save(train(contract.make(case), counted, counted), folder / f"{case} cpu.pt")
        torch.save(train(contract.make(case), counted, counted, **on_device()), folder / f"{case} emulated.pt")
    for name, where in (("cpu", dict), ("emulated", on_device)):
        torch.save(train_beside(folder / f"beside {name}", counted, where), folder / f"beside {name}.pt")
    for name in emulated_networks.CASES:
        torch.save(emulated_networks.train(name, counted), folder / f"{name} cpu.pt")
        torch.save(emulated_networks.train(name, counted, **on_device()), folder / f"{name} emulated.pt")
    for name in emulated_streams.CASES:
        torch.save(emulated_streams.train(name), folder / f"{name} cpu.pt")
        torch.save(emulated_streams.train(name, **on_device()), folder / f"{name} emulated.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """In a fresh process: a backend is registered for good, and autograd counts its devices once."""
    folder = tmp_path_factory.mktemp("emulated")
    python("-m", "tests.test_emulated_device", folder)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


CASES = [case for case in contract.CASES if case not in contract.FROM_FILES]


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_the_cpu(runs, case):
    here, there = runs[f"{case} cpu"], runs[f"{case} emulated"]
    assert there["device"] == "emulated"
    assert there["seen"] == here["seen"]
    assert there["saved"] == here["saved"]
    for kind in ("weights", "table"):
        for name, values in here[kind].items():
            torch.testing.assert_close(there[kind][name], values, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits(runs, case):
    assert runs[f"{case} emulated"]["steps"] == {}
    assert runs[f"{case} cpu"]["turns"] == [{}] * 2 * EPOCHS  # of the emulated device alone is counted


@pytest.mark.parametrize("case", CASES)
def test_what_an_epoch_waits_for(runs, case):
    """Between two epochs: at most the copies of O(n), for the loader draws on the host, and values that are stated."""
    text = (ROOT / "docs" / "performance.md").read_text()
    copies, values = map(int, re.search(rf"(?m)^\| {case} \| (\d+) \| (\d+) \|$", text).groups())
    turns = runs[f"{case} emulated"]["turns"]
    for end, start in zip(turns[1::2], turns[2::2], strict=False):
        both = Counter(end) + Counter(start)
        uploads = [int(name.rsplit(" ", 1)[1]) for name in both if name.startswith("upload")]
        assert max(uploads, default=0) < WORDS  # while those of O(n) go to the device, the host goes on
        total = Counter({name: number for name, number in both.items() if not name.startswith("upload")})
        sizes = [int(size) for name in total for size in re.findall(r"copy of (\d+)", name) for _ in range(total[name])]
        assert sum(size >= WORDS for size in sizes) <= copies
        assert total.total() <= values


def test_scores_labels_monitor_report_and_resume(runs):
    """All that looks on knows what it knows on the CPU, makes no step wait, and goes on from a checkpoint."""
    here, there = runs["beside cpu"], runs["beside emulated"]
    assert there["saved on"] == "cpu"  # a checkpoint loads anywhere
    found = there["whole"]["found"]
    assert (
        here["whole"]["found"].keys() == found.keys() >= {"score TDDS", "issue score", "table losses", "report times"}
    )
    for name, values in here["whole"]["found"].items():
        torch.testing.assert_close(found[name], values, equal_nan=True, msg=name)
        torch.testing.assert_close(there["resumed"]["found"][name], found[name], rtol=0, atol=0, equal_nan=True)
    assert there["whole"]["steps"] == there["resumed"]["steps"] == {}


@pytest.mark.parametrize("name", emulated_networks.CASES)
def test_networks_on_digits(runs, name):
    """Forward, backward, validation and pruning there: the same weights, losses and samples saved, to the last bit."""
    here, there = runs[f"{name} cpu"], runs[f"{name} emulated"]
    assert (here["device"], there["device"]) == ("cpu", "emulated")
    for kind in ("weights", "table"):
        for key, values in here[kind].items():
            torch.testing.assert_close(there[kind][key], values, rtol=0, atol=0)
    assert (there["saved"], there["accuracy"]) == (here["saved"], here["accuracy"])
    assert there["saved"] > 0.1
    assert there["accuracy"] > 0.6  # it learns
    assert there["steps"] == {}


@pytest.mark.parametrize("name", emulated_streams.CASES)
def test_streams_and_several_tables(runs, name):
    """The same results, and no step that waits."""
    here, there = runs[f"{name} cpu"], runs[f"{name} emulated"]
    assert there["device"] == "emulated"
    assert there["saved"] == here["saved"]
    for column, values in here["tables"].items():
        torch.testing.assert_close(there["tables"][column], values, equal_nan=True)
    assert there["steps"] == {}


def test_a_tensor_of_another_device_is_refused(tmp_path):
    """The emulation can fail: it tells the CPU from itself, and counts."""
    child = fork(_mix, log=tmp_path / "log")
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()


def _mix():
    from tests.emulated_device import DEVICE, counted

    there = torch.arange(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="on the same device, but add got emulated:0 and cpu"):
        there + torch.arange(3)
    waited = Counter()
    with counted(waited):
        assert (there + 1).tolist() == [1, 2, 3]
        assert int(there.sum()) == 3
        assert there[there > 0].cpu().tolist() == [1, 2]
        assert bool((there * torch.tensor(2)).max() == 4)  # a 0-d tensor may live anywhere
        torch.ones(4).to(DEVICE, non_blocking=True)
        torch.ones(4).to(DEVICE)
    assert waited == {"upload of 4": 1, "copy of 3": 1, "copy of 2": 1, "_local_scalar_dense": 2, "index": 1}


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]))
