from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import Features, score_features
from lightning_prune.scoring.features.feature_scores import FEATURE_METHODS
from lightning_prune.scoring.recorder import TRACKERS
from lightning_prune.scoring.score_file import ScoreFile
from lightning_prune.scoring.summary import summarize

TARGETS = torch.tensor([7] * 80 + [3] * 20)


def make(scores, targets=TARGETS, keep="high", **kwargs):
    columns = {} if targets is None else {"targets": targets}
    return ScoreFile.make(scores, method="X", keep=keep, columns=columns, **kwargs)


def test_the_histogram_counts_every_sample():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0)) ** 3
    rows = summarize(make(scores, targets=None)).splitlines()[1:11]
    counts = [int(row[23:].split()[0]) for row in rows]
    expected = torch.histc(scores, 10, float(scores.min()), float(scores.max()))
    assert counts == expected.tolist()
    assert rows[0].count("#") == 20


def test_what_is_not_finite_has_a_row():
    scores = torch.tensor([torch.inf, torch.nan, 1.0, 2.0, torch.nan])
    text = summarize(make(scores, targets=torch.zeros(5, dtype=torch.int64)))
    assert "infinite      1 " in text
    assert "never scored      2 " in text
    assert "Highest ids: 0 (inf), 3 (2), 2 (1)" in text
    assert text.count("-\n") == 1  # no share is kept of what was never scored


def test_equal_scores():
    rows = summarize(make(torch.ones(100), targets=None)).splitlines()
    assert rows[1].split() == ["1", "..", "1", "100", "#" * 20]
    assert len(rows) == 4


def test_class_shares():
    scores = torch.arange(100).float()  # class 3 has the highest
    lines = summarize(make(scores)).splitlines()
    table = {line.split()[0]: line.replace("%", "").split()[1:] for line in lines[12:14]}
    assert table == {"3": ["20", "100", "100", "100", "50"], "7": ["80", "62", "38", "12", "0"]}
    low = summarize(make(scores, keep="low")).splitlines()
    assert low[12].replace("%", "").split() == ["3", "20", "0", "0", "0", "0"]
    assert "high end is kept" in lines[0]
    assert "low end is kept" in low[0]


def test_many_classes():
    text = summarize(make(torch.rand(100), targets=torch.arange(100)))
    assert "... and 80 more classes" in " ".join(text.split())


def test_the_extremes():
    lines = summarize(make(torch.arange(100).float(), targets=None)).splitlines()
    assert lines[-2] == "Highest ids: " + ", ".join(f"{i} ({i})" for i in range(99, 89, -1))
    assert lines[-1] == "Lowest ids: " + ", ".join(f"{i} ({i})" for i in range(10))


def test_a_choice_has_no_histogram():
    features = Features(features=torch.arange(20.0)[:, None], targets=torch.arange(20) % 2)
    lines = summarize(score_features("KCenter", features, prune_ratio=0.5, first=0)).splitlines()
    assert lines[0] == "KCenter: scores of 20 samples, of which 10 were chosen"
    assert lines[1] == "A high score: chosen early; 0: not chosen."
    assert lines[3].split()[:3] == ["0", "10", "-"]  # not chosen for pruning 30 %
    assert lines[5].startswith("First chosen: 0 (10), 19 (9)")
    assert len(lines) == 7


def test_every_method_says_what_a_high_score_means():
    assert all(tracker.high for tracker in TRACKERS.values())
    shown = Features(features=torch.eye(4), logits=torch.eye(4), targets=torch.arange(4) // 2)
    for method in set(FEATURE_METHODS) - {"DeepFool"}:
        assert score_features(method, shown, prune_ratio=0.5).meta["high"]


def test_classes_have_names():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    text = summarize(make(scores, targets=TARGETS // 4, classes=["cat", "dog"]))
    assert text.splitlines()[11].split()[:2] == ["class", "samples"]
    assert [line.split()[0] for line in text.splitlines()[12:14]] == ["cat", "dog"]
    assert text.splitlines()[12].split()[1] == "20"


def suspicious(keep, share=0.2):
    """Hardest first: of 1,000 samples those with the highest scores are suspected."""
    scores = torch.arange(1000).float()
    doubts = (scores >= 1000 * (1 - share)).float()
    return ScoreFile.make(scores, method="X", keep=keep, columns={"label_issue": doubts})


def test_a_kept_end_that_collects_wrong_labels_is_warned_of():
    lines = summarize(suspicious("high")).splitlines()
    start = lines.index("Suspected wrong labels: 200 of 1,000 (20.0%). Among the samples kept:")
    shares = [line.split()[2:4] for line in lines[start + 1 : start + 5]]
    assert shares == [["28.6%,", "200"], ["40.0%,", "200"], ["66.7%,", "200"], ["100.0%,", "100"]]
    assert lines[start + 5] == (
        "Warning: what X keeps collects suspected wrong labels: 100% of the samples kept where 90% are pruned, "
        "20% of all."
    )


@pytest.mark.parametrize("file", [suspicious("low"), suspicious("high", share=0.005)], ids=["easy end", "a handful"])
def test_what_is_not_warned_of(file):
    text = summarize(file)
    assert "Suspected wrong labels" in text
    assert "Warning" not in text


def test_the_middle():
    assert "of which the middle is kept" in summarize(make(torch.rand(100), keep="middle"))
