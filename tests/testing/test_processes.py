"""Children of tests: what they say is told, and none is left behind."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
import torch

from lightning_prune.testing import processes


def all_reduce(rank, folder):
    values = torch.tensor([rank + 1.0])
    torch.distributed.all_reduce(values)
    torch.save(values, folder / f"{rank}.pt")


def fail_on_the_second(rank):
    if rank == 0:
        time.sleep(600)
    print("said before")
    raise RuntimeError("the reason")


def test_ranks_form_a_group(tmp_path):
    processes.run_ranks(all_reduce, tmp_path, folder=tmp_path)
    assert [torch.load(tmp_path / f"{rank}.pt", weights_only=True).item() for rank in (0, 1)] == [3, 3]


def test_a_broken_rank_is_told_of_and_ends_the_others(tmp_path):
    with pytest.raises(AssertionError, match="(?s)Rank 1 says:.*said before.*RuntimeError: the reason"):
        processes.run_ranks(fail_on_the_second, folder=tmp_path)
    assert not multiprocessing.active_children()


def test_ranks_that_hang_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    with pytest.raises(AssertionError, match="the processes hang"):
        processes.run_ranks(lambda rank: time.sleep(600), folder=tmp_path)
    assert not multiprocessing.active_children()


def test_a_child_that_ends_before_it_is_killed(tmp_path):
    with pytest.raises(AssertionError, match="over already"):
        processes.kill(print, "over already", once=lambda: False, delay=0, log=tmp_path / "log")
    processes.kill(time.sleep, 600, once=lambda: True, delay=0, log=tmp_path / "log")
    assert not multiprocessing.active_children()


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    with pytest.raises(AssertionError, match="the process hangs"):
        processes.kill(time.sleep, 600, once=lambda: False, delay=0, log=tmp_path / "log")
    assert not multiprocessing.active_children()


def test_the_newest_whole_checkpoint(tmp_path):
    assert processes.newest_checkpoint(tmp_path) is None
    for step in (3, 9, 12):
        torch.save({"step": step}, tmp_path / f"step={step}.ckpt")
    os.truncate(tmp_path / "step=12.ckpt", 40)
    assert processes.newest_checkpoint(tmp_path) == tmp_path / "step=9.ckpt"


def test_where_processes_cannot_be_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="GPU"):
        processes.skip_without_fork()
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(pytest.skip.Exception, match="made by fork"):
        processes.skip_without_fork()
