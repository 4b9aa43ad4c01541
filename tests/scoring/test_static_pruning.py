from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune.scoring import (
    AUM,
    DUAL,
    ScoreRecorder,
    StaticPruning,
    num_keep,
    save_scores,
    select_middle,
    select_top,
)
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.scoring.helpers import seeded_model

SCORES = torch.rand(40, generator=torch.Generator().manual_seed(4))
TARGETS = make_loader().dataset.tensors[1]


def fit(callback, loader=None, *, ckpt_path=None, callbacks=(), **kwargs):
    torch.manual_seed(9)
    model, trainer = Model(), make_trainer(callback, *callbacks, **{"max_epochs": 3, **kwargs})
    trainer.fit(model, loader or make_loader(), ckpt_path=ckpt_path)
    return model, trainer


def coreset(callback):
    """Ids that every epoch trained on."""
    model, trainer = fit(callback)
    epochs = [sorted(model.epoch_ids(epoch)) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert trainer.callback_metrics["prune/kept_fraction"] == len(epochs[0]) / 40
    return epochs[0]


@pytest.mark.parametrize("prune_ratio", [0.0, 0.3, 0.5, 0.71, 0.99])
def test_the_top_from_the_first_epoch(prune_ratio):
    k = num_keep(40, 1 - prune_ratio)
    assert coreset(StaticPruning(SCORES, prune_ratio)) == select_top(SCORES, k).tolist()


def test_fresh_order_each_epoch():
    model, _ = fit(StaticPruning(SCORES, 0.5))
    assert model.epoch_ids(0) != model.epoch_ids(1)


@pytest.mark.filterwarnings("ignore:(?s).*will leave nothing out in the 3 epochs")
def test_nothing_pruned_is_the_plain_run():
    pruned, _ = fit(StaticPruning(SCORES, 0.0))
    plain, _ = fit(StaticPruning(SCORES, 0.5, warmup_epochs=3))
    assert pruned.seen == plain.seen
    assert torch.equal(pruned.layer.weight, plain.layer.weight)


def test_the_file_says_which_end(tmp_path):
    low = save_scores(tmp_path / "low.npz", SCORES, method="AUM", keep="low")
    assert coreset(StaticPruning(low, 0.5)) == select_top(SCORES, 20, "low").tolist()
    assert coreset(StaticPruning(str(low), 0.5, keep="high")) == select_top(SCORES, 20, "high").tolist()


def test_selectors():
    assert coreset(StaticPruning(SCORES, 0.7, "middle")) == select_middle(SCORES, 0.3).tolist()
    args = {"hard_cutoff": 0.2, "num_strata": 5}
    kept = coreset(StaticPruning(SCORES, 0.7, "ccs", selector_args=args, seed=3))
    assert len(kept) == 12
    assert not set(kept) & set(SCORES.argsort()[:8].tolist())
    kept = coreset(StaticPruning(SCORES, 0.7, "beta", selector_args={"difficulty_mean": SCORES}))
    assert len(kept) == 12
    assert coreset(StaticPruning(SCORES, 0.7, lambda scores, k: torch.arange(k))) == list(range(12))


def test_the_file_says_the_middle(tmp_path):
    path = save_scores(tmp_path / "moderate.npz", SCORES, method="Moderate", keep="middle")
    assert coreset(StaticPruning(path, 0.7)) == select_middle(SCORES, 0.3).tolist()
    assert coreset(StaticPruning(path, 0.7, keep="low")) == select_top(SCORES, 12, "low").tolist()


def test_draws_depend_on_the_seed_only():
    def choose(seed):
        return StaticPruning(SCORES, 0.7, "ccs", seed=seed).choose(40).indices.tolist()

    assert choose(1) == choose(1)
    assert choose(1) != choose(2)


@pytest.mark.parametrize("selector", ["top", "middle", "ccs", "beta"])
def test_class_balanced(selector):
    args = {"difficulty_mean": SCORES} if selector == "beta" else None
    callback = StaticPruning(SCORES, 0.5, selector, class_balanced=True, targets=TARGETS, selector_args=args)
    kept = callback.choose(40).indices
    assert len(kept) == 20
    assert abs(TARGETS[kept].sum() - 0.5 * TARGETS.sum()) < 1
    if selector == "top":
        for members in (TARGETS.bool(), ~TARGETS.bool()):
            ids, own = members.nonzero().squeeze(1), kept[members[kept]]
            assert torch.equal(own, ids[select_top(SCORES[ids], len(own))])


def test_score_one_run_prune_the_next(tmp_path):
    recorder = ScoreRecorder([DUAL(window=2), AUM()], tmp_path)
    make_trainer(recorder, max_epochs=4).fit(seeded_model(), make_loader())
    dual, aum = recorder.paths
    kept = coreset(StaticPruning(dual, 0.5))
    assert kept == select_top(recorder.trackers[0].compute(), 20).tolist()
    assert len(coreset(StaticPruning(dual, 0.6, "beta", class_balanced=True))) == 16
    args = {"cutoff_scores": str(aum), "hard_cutoff": 0.3}
    kept = coreset(StaticPruning(dual, 0.6, "ccs", selector_args=args))
    assert not set(kept) & set(recorder.trackers[1].compute().argsort()[:12].tolist())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_keeps_its_coreset(tmp_path):
    path = save_scores(tmp_path / "a.npz", SCORES, method="X", keep="high")

    def checkpoint(folder):
        return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)

    def callback():
        return StaticPruning(path, 0.5, "ccs")

    def run(folder, **kwargs):
        return fit(callback(), callbacks=[checkpoint(tmp_path / folder)], enable_checkpointing=True, **kwargs)[0]

    whole = run("whole")
    path.unlink()
    torch.manual_seed(1)
    for step in (5, 7):
        resumed = run(f"resumed{step}", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert whole.seen[-len(resumed.seen) :] == resumed.seen
        assert torch.equal(whole.layer.weight, resumed.layer.weight)


def fails(match, *args, error=ValueError, **kwargs):
    with pytest.raises(error, match=match):
        fit(StaticPruning(*args, **kwargs))


def test_what_does_not_fit_fails_before_the_first_step(tmp_path):
    fails("`scores` of the 40 samples of the training dataset", SCORES[:39])
    short = save_scores(tmp_path / "short.npz", SCORES[:39], method="X", keep="high")
    fails("scores of the 40 samples of the training dataset, but .* has 39", short)
    broken = torch.where(torch.arange(40) == 3, torch.nan, SCORES)
    fails("without NaN, but got 1 of 40", broken)
    fails("1 of 40 are NaN", save_scores(tmp_path / "nan.npz", broken, method="X", keep="high"))
    fails("Expected a score file, but there is none at", tmp_path / "none.npz", error=FileNotFoundError)
    fails("class ids for `class_balanced=True`", SCORES, class_balanced=True)
    fails("`difficulty_mean` for beta sampling", SCORES, selector="beta")
    fails("`k` <= 8, which `hard_cutoff=0.8`", SCORES, 0.5, "ccs", selector_args={"hard_cutoff": 0.8})
    el2n = save_scores(tmp_path / "el2n.npz", SCORES, method="EL2N", keep="high")
    fails("`cutoff_scores` for a hard cutoff of EL2N", el2n, 0.5, "ccs", selector_args={"hard_cutoff": 0.2})


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"prune_ratio": 1.0}, r"`prune_ratio` to be a number in \[0, 1\)"),
        ({"prune_ratio": -0.1}, "`prune_ratio`"),
        ({"selector": "best"}, "`selector` to be one of"),
        ({"keep": "middle"}, "`keep` to be one of"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        StaticPruning(SCORES, **kwargs)


def test_the_coreset_is_a_column_of_the_registry():
    _, trainer = fit(StaticPruning(SCORES, 0.5))
    column = registry_of(trainer).to_dict()["coreset"]
    assert column.sum() == 20
