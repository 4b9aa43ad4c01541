from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pytest
import torch

from lightning_prune.scoring import load_scores, save_scores

SCORES = torch.tensor([3.0, 1.0, 2.0])


def write(path, *, meta=None, **arrays):
    meta = {"method": "X", "keep": "high", "parameters": {}, "n": 3, "date": "", "version": 1, **(meta or {})}
    content = {"indices": np.arange(3), "scores": SCORES.numpy(), "meta": np.array(json.dumps(meta)), **arrays}
    np.savez(path, **content)
    return path


def test_round_trip(tmp_path):
    columns = {"targets": torch.tensor([0, 1, 0])}
    path = save_scores(
        tmp_path / "new" / "a", SCORES, method="EL2N", keep="low", parameters={"num_epochs": 3}, columns=columns
    )
    assert path == tmp_path / "new" / "a.npz"
    file = load_scores(path, 3)
    assert torch.equal(file.scores, SCORES)
    assert torch.equal(file.columns["targets"], columns["targets"])
    assert file.keep == "low"
    assert {name: file.meta[name] for name in ("method", "keep", "parameters", "n", "version")} == {
        "method": "EL2N",
        "keep": "low",
        "parameters": {"num_epochs": 3},
        "n": 3,
        "version": 1,
    }
    assert datetime.fromisoformat(file.meta["date"]).tzinfo is not None


def test_it_is_a_plain_archive(tmp_path):
    with np.load(save_scores(tmp_path / "a.npz", SCORES, method="X", keep="high"), allow_pickle=False) as archive:
        assert sorted(archive.files) == ["indices", "meta", "scores"]
        assert archive["indices"].tolist() == [0, 1, 2]
        assert archive["scores"].dtype == np.float32
        assert json.loads(str(archive["meta"]))["n"] == 3


def test_rows_in_another_order(tmp_path):
    file = load_scores(write(tmp_path / "a.npz", indices=np.array([2, 0, 1]), targets=np.array([7, 8, 9])))
    assert file.scores.tolist() == [1.0, 2.0, 3.0]
    assert file.columns["targets"].tolist() == [8, 9, 7]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_scores(tmp_path / "a.npz", SCORES, method="old", keep="high")

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_scores(path, SCORES, method="new", keep="high")
    monkeypatch.undo()
    assert load_scores(path).meta["method"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_bad_files(tmp_path):
    path = write(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="scores of the 4 samples of the training dataset, but .* has 3"):
        load_scores(path, 4)
    with pytest.raises(ValueError, match="file of version 1, but .* has 2. Write it again"):
        load_scores(write(path, meta={"version": 2}))
    with pytest.raises(ValueError, match="2 of 3 are NaN in .* never scored"):
        load_scores(write(path, scores=np.array([np.nan, 1, np.nan])))
    with pytest.raises(ValueError, match="each id in .* once"):
        load_scores(write(path, indices=np.array([0, 1, 1])))
    with pytest.raises(ValueError, match="each id in .* once"):
        load_scores(write(path, indices=np.arange(4)))
    with pytest.raises(FileNotFoundError):
        load_scores(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is None:
        np.savez(path, scores=SCORES.numpy())
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="Expected a score file with `indices`, `scores` and `meta`"):
        load_scores(path)


def test_bad_scores(tmp_path):
    with pytest.raises(ValueError, match=r"end in `\.npz`"):
        save_scores(tmp_path / "a.csv", SCORES, method="X", keep="high")
    with pytest.raises(ValueError, match="`keep` to be one of"):
        save_scores(tmp_path / "a", SCORES, method="X", keep="most")
    with pytest.raises(ValueError, match=r"'targets' to have a value for each score, shape \(3,\), but got"):
        save_scores(tmp_path / "a", SCORES, method="X", keep="high", columns={"targets": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        save_scores(tmp_path / "a", SCORES[None], method="X", keep="high")
    assert not list(tmp_path.iterdir())
