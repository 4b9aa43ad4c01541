"""The benchmarks still run: each part's code on tiny inputs. Only figures that must be exact are looked at."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import alignment, ddp, epoch_end, gpu, memory, per_step, run, sharded, wall_clock
from benchmarks.measure import HEADER, Row, machine
from lightning_prune.testing.processes import run_ranks, skip_without_fork

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def check(rows):
    assert rows
    for row in rows:
        assert row.values
        assert all(math.isfinite(value) for value in row.values), row
        assert str(row).count("|") == HEADER.splitlines()[0].count("|")
        assert row.to_dict()["verdict"] == row.verdict
    return {row.name: row for row in rows}


def test_verdicts():
    values = [0.3, 0.2, 0.4]
    assert Row("a", 1, values).verdict == "reported"
    assert Row("a", 1, values, 0.3, 0.2).verdict == "must"
    assert Row("a", 1, values, 0.4, 0.3).verdict == "aim"
    assert Row("a", 1, values, 0.29).verdict == "MISSED"
    assert Row("a", 1, values, 0.3, 0.31, at_least=True).verdict == "must"
    assert Row("a", 1, values, 0.31, at_least=True).verdict == "MISSED"
    assert Row("a", 1, [], 0.3, why_not="no GPU").verdict == "not run: no GPU"


def test_epoch_ends():
    rows = check(epoch_end.measure(n=600, rounds=1, large_rounds=1))
    assert len(rows) == 2 * len(epoch_end.available()) + 2


def test_every_row_of_the_list_names_a_method_or_none():
    import lightning_prune

    for name, (exported, _) in epoch_end.METHODS.items():
        if hasattr(lightning_prune, exported):
            method = epoch_end.make_method(name)
            assert type(method).__name__ == exported
            assert method.warmup_epochs == 1


def test_the_naive_correlation_is_ours():
    check(alignment.measure(n=50, rounds=1))
    x, y = torch.rand(20, 25, generator=torch.Generator().manual_seed(0)), torch.linspace(2, 1, 25)
    for naive in (alignment.by_definition, alignment.by_norms, alignment.masked):
        torch.testing.assert_close(naive(x, y), alignment.alignment_score(x, y), atol=1e-5, rtol=0)
    x[0, 1] = x[2, 0] = torch.nan
    torch.testing.assert_close(alignment.masked(x, y), alignment.alignment_score(x, y), atol=1e-5, rtol=0)


def test_steps():
    check(per_step.measure(steps=120))


def test_wall_clock():
    check(wall_clock.measure(n=256, rounds=1))


def test_the_bytes_of_tensors_are_those_that_take_memory():
    before = memory.tensor_bytes()
    x = torch.zeros(1000)
    kept = [x, x.view(10, 100), torch.empty(10_000, device="meta"), torch.empty(0), torch.empty(20_000, device="meta")]
    assert memory.tensor_bytes() - before == kept[0].nbytes


def test_memory():
    figures = memory.end_of_epoch(20_000)
    assert 8 <= figures["state"] <= 16
    assert 5 <= figures["checkpoint"] <= figures["checkpoint_open"] <= 9  # with what does not grow with n
    assert 5 <= figures["checkpoint_open_full"] <= 9
    assert figures["process"] >= 0


@pytest.mark.ddp
def test_ranks(tmp_path):
    skip_without_fork()
    run_ranks(find_traffic, tmp_path, folder=tmp_path)
    rows = check(ddp.rows_of(1000, found_in(tmp_path)))
    assert [row.median for row in rows.values()][:3] == [4.0, 0, 1]  # half the losses from each, no steps, one sync


def find_traffic(rank, folder):
    (folder / f"{rank}.json").write_text(json.dumps(ddp.figures_of(rank, 1000, 1)))


def found_in(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.ddp
def test_ranks_with_a_part_each(tmp_path):
    skip_without_fork()
    run_ranks(find_figures, tmp_path, folder=tmp_path)
    rows = check(sharded.rows_of("InfoBatch", 3000, found_in(tmp_path)))
    assert {row.verdict for row in rows.values()} == {"must", "reported"}, "\n".join(map(str, rows.values()))


def find_figures(rank, folder):
    (folder / f"{rank}.json").write_text(json.dumps(sharded.figures_of("InfoBatch", 3000, rank, 2)))


@pytest.mark.parametrize("part", sorted(gpu.PARTS))
def test_gpu_parts(part):
    if part == "e":
        assert gpu.run(gpu.CPU, part)[0].verdict.startswith("not run")
    else:
        check(gpu.run(gpu.CPU, part))


def test_what_the_command_runs():
    assert set(run.parts(quick=True)) == set(run.parts(quick=False))
    assert {"cpu", "cores", "threads", "python", "torch", "date"} <= set(machine())
