from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import RandomPruning, ScoreRegistry
from lightning_prune.scoring import DUAL, EL2N, TDDS, Entropy, Forgetting, ScoreRecorder, SmallLoss, load_scores
from tests.helpers import Model, PlainModel, make_loader, make_trainer
from tests.scoring.helpers import ScoredModel, all_trackers, replay, seeded_model


def fit(recorder, model=None, loader=None, *, ckpt_path=None, callbacks=(), **kwargs):
    model = model or seeded_model()
    trainer = make_trainer(recorder, *callbacks, **{"max_epochs": 5, **kwargs})
    trainer.fit(model, loader or make_loader(), ckpt_path=ckpt_path)
    return model


def test_scores_are_those_of_the_batches():
    recorder = ScoreRecorder(all_trackers())
    model = fit(recorder)
    for recorded, fresh in zip(recorder.trackers, all_trackers(), strict=True):
        torch.testing.assert_close(recorded.compute(), replay(model, fresh), rtol=1e-6, atol=1e-6)
        assert recorded.epoch == 5


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_any_number_of_steps(batch_size):
    recorder = ScoreRecorder([EL2N(), TDDS(window=3)])
    model = fit(recorder, loader=make_loader(batch_size=batch_size))
    torch.testing.assert_close(recorder.trackers[1].compute(), replay(model, TDDS(window=3)), rtol=1e-6, atol=1e-6)


def test_training_is_not_changed():
    scored, plain = fit(ScoreRecorder(all_trackers()), seeded_model(dropout=0.3)), seeded_model(dropout=0.3)
    make_trainer(ScoreRegistry(), max_epochs=5).fit(plain, make_loader())
    for a, b in zip(scored.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_file(tmp_path):
    recorder = ScoreRecorder(DUAL(window=3, num_epochs=4), tmp_path / "scores" / "dual.npz")
    fit(recorder)
    file = load_scores(tmp_path / "scores" / "dual.npz", 40)
    tracker = recorder.trackers[0]
    assert torch.equal(file.scores, tracker.compute())
    assert file.meta["method"] == "DUAL"
    assert file.meta["keep"] == "high"
    assert file.meta["parameters"] == {"window": 3, "num_epochs": 4}
    assert torch.equal(file.columns["targets"], make_loader().dataset.tensors[1])
    assert torch.equal(file.columns["difficulty_mean"], tracker.difficulty_mean)


def test_files_of_several_trackers(tmp_path):
    trackers = ["Entropy", TDDS(window=3), TDDS(window=4)]
    recorder = ScoreRecorder(trackers, str(tmp_path / "run.npz"))
    fit(recorder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run_entropy.npz", "run_tdds.npz", "run_tdds_2.npz"]
    recorder = ScoreRecorder(["Entropy", "Forgetting"], tmp_path / "folder")
    fit(recorder)
    assert [p.name for p in recorder.paths] == ["entropy.npz", "forgetting.npz"]
    assert all(p.exists() for p in recorder.paths)
    assert load_scores(recorder.paths[1]).meta["parameters"] == {"never_learned": "inf"}


def test_a_second_fit_starts_afresh():
    recorder = ScoreRecorder("Forgetting")
    fit(recorder)
    first = recorder.trackers[0].compute()
    fit(recorder)
    assert torch.equal(recorder.trackers[0].compute(), first)
    assert recorder.trackers[0].epoch == 5


def test_masked_out_samples_are_not_recorded():
    class Masked(ScoredModel):
        def weighted_loss(self, losses, **kwargs):
            mask = self.steps[-1][1]["indices"] != 7
            return super().weighted_loss(losses, mask=mask, **kwargs)

    recorder = ScoreRecorder(all_trackers())
    fit(recorder, Masked())
    for tracker in recorder.trackers:
        assert tracker.compute().isnan().nonzero().flatten().tolist() == [7]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_skipped_batches():
    class Skipping(ScoredModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 2 else loss

    recorder = ScoreRecorder(["SmallLoss", "EL2N"])
    model = fit(recorder, Skipping())
    torch.testing.assert_close(recorder.trackers[1].compute(), replay(model, EL2N()))


def test_samples_never_seen_are_warned_of(tmp_path):
    loader = make_loader(num_samples=39, shuffle=False, drop_last=True)
    with pytest.warns(UserWarning, match=r"3 of 39 samples have no score of EL2N\(num_epochs=10\).*`drop_last=False`"):
        fit(ScoreRecorder("EL2N", tmp_path / "a.npz"), loader=loader)
    with pytest.raises(ValueError, match="3 of 39 are NaN"):
        load_scores(tmp_path / "a.npz")


@pytest.mark.parametrize("missing", ["logits", "targets", "features"])
def test_what_is_needed_must_be_passed(missing):
    passes = tuple(name for name in ("logits", "targets", "features") if name != missing)
    model = seeded_model(passes=passes)
    with pytest.raises(ValueError, match=rf"`{missing}` for .*None. Write `self.weighted_loss\(losses, {missing}="):
        fit(ScoreRecorder(all_trackers()), model)
    assert len(model.steps) == 1


class Mixup(ScoredModel):
    def weighted_loss(self, losses, *, targets, **kwargs):
        return super().weighted_loss(losses, targets=torch.stack([targets, 1 - targets], 1).float(), **kwargs)


@pytest.mark.parametrize("tracker", ["EL2N", TDDS(window=3), "Entropy"])
def test_mixed_targets_are_refused(tracker):
    """Also by scores that need no labels: their logits are those of mixed inputs."""
    with pytest.raises(ValueError, match="Mixed targets"):
        fit(ScoreRecorder(tracker), Mixup())


def test_losses_may_have_any_targets(tmp_path):
    fit(ScoreRecorder("SmallLoss", tmp_path / "a.npz"), Mixup())
    assert "targets" not in load_scores(tmp_path / "a.npz").columns


def test_labels_are_in_the_file_of_any_score(tmp_path):
    for tracker in (TDDS(window=3), "SmallLoss"):
        fit(ScoreRecorder(tracker, tmp_path / "a.npz"))
        assert torch.equal(load_scores(tmp_path / "a.npz").columns["targets"], make_loader().dataset.tensors[1])


def test_a_run_too_short_for_the_window(tmp_path):
    with pytest.raises(ValueError, match="`max_epochs` >= 10 for TDDS.*but got 5"):
        fit(ScoreRecorder("TDDS"))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_nothing_is_lost_when_a_run_ended_too_early(tmp_path):
    """The other scores and the checkpoint are written; from there a longer run has the score of a whole one."""
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1)
    recorder = ScoreRecorder(["EL2N", TDDS(window=4)], tmp_path)
    with pytest.raises(ValueError, match="at least 4 recorded epochs for a score of TDDS.*2 epochs. Train longer or"):
        fit(recorder, callbacks=[checkpoint], enable_checkpointing=True, max_steps=15, max_epochs=-1)
    assert load_scores(tmp_path / "el2n.npz").meta["method"] == "EL2N"
    assert not (tmp_path / "tdds.npz").exists()
    fit(recorder, max_steps=50, max_epochs=-1, ckpt_path=tmp_path / "step=15.ckpt")
    whole = ScoreRecorder(["EL2N", TDDS(window=4)])
    fit(whole)
    assert torch.equal(load_scores(tmp_path / "tdds.npz").scores, whole.trackers[1].compute())


def test_fast_dev_run_writes_nothing(tmp_path):
    fit(ScoreRecorder("TDDS", tmp_path / "a.npz"), fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_another_number_of_samples():
    with pytest.raises(ValueError, match="the 40 samples of the training dataset, but it is for 41"):
        fit(ScoreRecorder(EL2N(41)))


def test_pruning_beside_it_is_warned_of():
    with pytest.warns(UserWarning, match="recorded while samples are pruned"):
        fit(ScoreRecorder("SmallLoss"), callbacks=[RandomPruning(0.2, seed=0)])


def test_the_mixin_is_needed():
    with pytest.raises(MisconfigurationException, match="WeightedLossMixin"):
        fit(ScoreRecorder("SmallLoss"), PlainModel())


def test_losses_alone_are_enough_for_small_loss():
    recorder = ScoreRecorder(SmallLoss())
    model = fit(recorder, Model())
    expected = torch.tensor([model.true_losses[i] for i in range(40)])
    torch.testing.assert_close(recorder.trackers[0].compute(), expected)


@pytest.mark.parametrize(
    ("tracker", "error", "match"),
    [
        ("TDSS", ValueError, "`tracker` to be one of"),
        ([], ValueError, "at least one tracker"),
        ([3], TypeError, "`tracker` to be a tracker or the name of one, but got int"),
    ],
)
def test_bad_arguments(tracker, error, match):
    with pytest.raises(error, match=match):
        ScoreRecorder(tracker)


@pytest.mark.parametrize(
    "point", ["step/epoch=2-step=23", "step/epoch=2-step=29", "step/epoch=2-step=30", "end/epoch=2-step=30"]
)
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resume_is_the_uninterrupted_run(tmp_path, point):
    def run(folder, ckpt_path=None):
        checkpoints = [
            ModelCheckpoint(folder / "step", "{epoch}-{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(folder / "end", "{epoch}-{step}", save_on_train_epoch_end=True, save_top_k=-1),
        ]
        recorder = ScoreRecorder(all_trackers(), folder)
        fit(recorder, ckpt_path=ckpt_path, callbacks=checkpoints, enable_checkpointing=True)
        return recorder

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / f"{point}.ckpt")
    for a, b in zip(whole.trackers, resumed.trackers, strict=True):
        assert torch.equal(a.compute(), b.compute()), a
        assert a.epoch == b.epoch == 5
    assert torch.equal(load_scores(whole.paths[0]).columns["targets"], load_scores(resumed.paths[0]).columns["targets"])


def test_two_recorders_in_one_run():
    a, b = ScoreRecorder("Entropy"), ScoreRecorder([Forgetting(), Entropy()])
    fit(a, callbacks=[b])
    assert a.state_key != b.state_key
    assert torch.equal(a.trackers[0].compute(), b.trackers[1].compute())


def test_an_exception_leaves_nothing_behind():
    class Fails(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("stop")

    recorder = ScoreRecorder("Entropy")
    with pytest.raises(RuntimeError, match="stop"):
        fit(recorder, callbacks=[Fails()])
    fit(recorder)
    assert recorder.trackers[0].epoch == 5
