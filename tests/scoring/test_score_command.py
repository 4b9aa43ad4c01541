"""`lightning-prune score`, as a user runs it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.cli import main
from lightning_prune.scoring import StaticPruning, collect_features, influence, load_scores, score_module
from lightning_prune.scoring.features.feature_scores import FEATURE_METHODS, try_parameters
from lightning_prune.scoring.trackers.entropy import entropy
from lightning_prune.scoring.trainer import ScoringTrainer
from tests.helpers import make_dataset, make_loader
from tests.scoring.helpers import ScoredModel

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

ROOT = Path(__file__).parent.parent.parent


class CommandModel(ScoredModel):
    def __init__(self, passes: tuple[str, ...] = ("logits", "targets")) -> None:
        torch.manual_seed(0)
        super().__init__(passes=passes)

    def forward(self, x):
        return self.layer(x)

    def train_dataloader(self):
        return make_loader()


class Blobs(TensorDataset):
    """Two classes with names; a tenth of the labels is wrong, and what is at the end is easy."""

    classes = ("cat", "dog")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        right = torch.arange(200) % 2
        x = torch.randn(200, 8, generator=generator) + 4 * (right[:, None] - 0.5)
        self.wrong = torch.arange(200) < 20
        super().__init__(x, torch.where(self.wrong, 1 - right, right), torch.arange(200))


class NoisyModel(CommandModel):
    def train_dataloader(self):
        return DataLoader(Blobs(), 10, shuffle=True)


class ValidatedModel(CommandModel):
    def val_dataloader(self):
        return [make_loader(8), make_loader()]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = {"max_epochs": 4, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
               "logger": False, "enable_checkpointing": False}  # fmt: skip
    model = {"class_path": f"{__name__}.CommandModel"}
    Path("config.yaml").write_text(yaml.safe_dump({"seed_everything": 0, "trainer": trainer, "model": model}))
    return "config.yaml"


def score(config, *args):
    main(["score", "--config", config, *args])


def fails(capsys, *args):
    with pytest.raises(SystemExit) as error:
        main(["score", *args])
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    message = err[err.index("error:") :]
    assert len(message.splitlines()) <= 4
    return message


def test_a_score_of_a_run(config, capsys):
    """The pruning callback is left out: every sample was seen in every epoch."""
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"]["callbacks"] = [{"class_path": "RandomPruning", "init_args": {"prune_ratio": 0.5}}]
    Path(config).write_text(yaml.safe_dump(content))
    score(config, "--method=TDDS", "--save_to=tdds.npz", "--method_args.window=3")
    file = load_scores("tdds.npz", 40)
    assert file.meta["parameters"]["window"] == 3
    out = capsys.readouterr().out
    summary = out[out.index("TDDS: scores of 40 samples, of which the high end is kept") :]
    assert "####" in summary
    assert "kept of 30% pruned  kept of 50% pruned  kept of 70% pruned" in summary
    highest = [int(i) for i in file.scores.argsort(descending=True, stable=True)[:10]]
    assert "Highest ids: " + ", ".join(f"{i} ({file.scores[i]:.4g})" for i in highest) in summary
    assert "Written to tdds.npz" in summary


def test_a_file_that_cannot_be_written_is_known_before_training(config, capsys):
    Path("taken").write_text("a file")
    message = fails(capsys, "--config", config, "--method=TDDS", "--save_to=taken/tdds.npz")
    assert "Expected to be able to write 'taken/tdds.npz'" in message


def test_where_the_kept_end_collects_wrong_labels(config, capsys):
    """AUM keeps the hardest; names of the classes, a table beside the file, and a warning."""
    args = ["--method=AUM", "--save_to=aum.npz", "--table=aum.csv", f"--model={__name__}.NoisyModel"]
    score(config, *args)
    out = capsys.readouterr().out
    assert "of which the low end is kept\nA high score: easy, the label is far ahead of the other classes" in out
    assert "Warning: what AUM keeps collects suspected wrong labels: " in out
    assert "Written to aum.npz and aum.csv" in out
    file = load_scores("aum.npz", 200)
    suspected = file.columns["label_issue"] > 0.5
    assert int((suspected & Blobs().wrong).sum()) >= 18
    assert int(suspected.sum()) <= 24
    assert file.classes == ["cat", "dog"]
    with Path("aum.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0]) == ["index", "score", "class", "label_issue"]
    assert [int(row["index"]) for row in rows] == file.scores.argsort(stable=True).tolist()
    assert rows[0]["class"] == file.classes[file.columns["targets"][int(rows[0]["index"])]]
    assert float(rows[0]["score"]) == pytest.approx(float(file.scores.min()), rel=1e-5)
    message = fails(capsys, "--config", config, *args)
    assert "Expected `save_to` to name a new file, but 'aum.npz' is there already." in message
    assert "Expected `table` to name a new file" in fails(capsys, "--config", config, *args, "--save_to=new.npz")
    score(config, *args, "--overwrite=true", "--method=SmallLoss")
    assert load_scores("aum.npz").meta["method"] == "SmallLoss"
    assert "Warning" not in capsys.readouterr().out


def test_uncertainty_is_that_of_the_finished_model(tmp_path):
    trainer = ScoringTrainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    model = CommandModel()
    file = trainer.score(model, method="Entropy", save_to=str(tmp_path / "entropy.npz"))
    with torch.no_grad():
        expected = entropy(model(make_dataset().tensors[0]))
    torch.testing.assert_close(file.scores, expected)


def test_random_scores_need_no_training(config, capsys, monkeypatch):
    monkeypatch.setattr(CommandModel, "training_step", None)
    score(config, "--method=Random", "--save_to=random.npz", "--method_args.seed=3")
    assert "Random: scores of 40 samples" in capsys.readouterr().out
    kept = StaticPruning("random.npz", 0.5).choose(40).indices
    assert torch.equal(kept, StaticPruning("random", 0.5, seed=3).choose(40).indices)
    assert "`seed` to be an int >= 0" in fails(
        capsys, "--config", config, "--method=Random", "--save_to=a.npz", "--method_args.seed=-1"
    )


def test_a_trained_module_is_scored_in_one_pass(config, capsys):
    score(config, "--method=KCenter", "--prune_ratio=0.5", "--save_to=scores")
    file = load_scores("scores/kcenter.npz", 40)
    assert file.num_ranked == 20
    assert "KCenter: scores of 40 samples, of which 20 were chosen" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["EL2N", "Moderate", "DeepFool"])
def test_a_checkpoint_is_scored_without_training(config, method):
    torch.manual_seed(7)
    model = CommandModel()
    model.layer.weight.data.normal_()
    torch.save({"state_dict": model.state_dict()}, "a.ckpt")
    score(config, f"--method={method}", "--save_to=a.npz", "--ckpt_path=a.ckpt")
    expected = score_module(method, model, make_loader(), progress=False)
    assert torch.equal(load_scores("a.npz", 40).scores, expected.scores)


def test_recording_resumes_from_a_checkpoint(config):
    saving = ["--trainer.enable_checkpointing=true", "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
              "--trainer.callbacks.dirpath=points", "--trainer.callbacks.filename={epoch}",
              "--trainer.callbacks.save_top_k=-1"]  # fmt: skip
    arguments = ["--method=TDDS", "--method_args.window=3"]
    score(config, *arguments, "--save_to=whole.npz", *saving)
    score(config, *arguments, "--save_to=resumed.npz", "--ckpt_path=points/epoch=1.ckpt")
    assert torch.equal(load_scores("resumed.npz").scores, load_scores("whole.npz").scores)


def test_the_mean_over_checkpoints(config, capsys):
    """MoSo's states are weighed by their learning rates, which the checkpoints hold."""
    expected, grand = torch.zeros(40), torch.zeros(40)
    for i, rate in enumerate((0.1, 0.3)):
        torch.manual_seed(i)
        model = CommandModel()
        model.layer.weight.data.normal_()
        optimizer = {"param_groups": [{"lr": rate, "params": []}], "state": {}}
        torch.save({"state_dict": model.state_dict(), "optimizer_states": [optimizer]}, f"{i}.ckpt")
        expected += rate * score_module("MoSo", model, make_loader(), progress=False).scores / 2
        grand += score_module("GraNd", model, make_loader(), progress=False).scores / 2
    both = '--checkpoints=["0.ckpt","1.ckpt"]'
    for method, scores in (("MoSo", expected), ("GraNd", grand)):
        score(config, f"--method={method}", "--save_to=a.npz", both, "--overwrite=true")
        file = load_scores("a.npz", 40)
        torch.testing.assert_close(file.scores, scores)
    assert file.meta["parameters"]["checkpoints"] == ["0.ckpt", "1.ckpt"]
    message = fails(capsys, "--config", config, "--method=EL2N", "--save_to=b.npz", both, "--ckpt_path=0.ckpt")
    assert "Expected `checkpoints` or `ckpt_path`, but got both" in message


def test_influence_on_the_loss_is_on_that_of_the_validation_set(config):
    """Of the first of its loaders; a module without one has the training set looked at."""
    torch.manual_seed(7)
    model = ValidatedModel()
    model.layer.weight.data.normal_()
    torch.save({"state_dict": model.state_dict()}, "a.ckpt")
    train, held_out = (
        collect_features(model, one, progress=False) for one in (make_loader(), model.val_dataloader()[0])
    )
    by_the_loss = {"kind": "loss", "generator": torch.Generator().manual_seed(0)}
    shown = {f"val_{name}": getattr(held_out, name) for name in ("logits", "features", "targets")}
    one, several = "--ckpt_path=a.ckpt", '--checkpoints=["a.ckpt"]'
    for name, given, by in (("ValidatedModel", shown, several), ("CommandModel", {}, one)):
        arguments = ["--method=Influence", "--method_args.kind=loss", "--save_to=a.npz", "--overwrite=true", by]
        score(config, f"--model={__name__}.{name}", *arguments)
        expected = influence(train.logits, train.features, train.targets, **by_the_loss, **given)
        file = load_scores("a.npz", 40)
        torch.testing.assert_close(file.scores, expected)
        assert file.meta["parameters"].get("validation_samples") == (8 if given else None)
    assert not torch.allclose(expected, influence(train.logits, train.features, train.targets, **by_the_loss, **shown))


def test_fit_on_what_was_scored(config):
    """Both callbacks are known by their short names."""
    score(config, "--method=CRAIG", "--prune_ratio=0.5", "--save_to=craig.npz")
    content = yaml.safe_load(Path(config).read_text())
    recorder = {"class_path": "ScoreRecorder", "init_args": {"tracker": "SmallLoss", "save_to": "small.npz"}}
    pruning = {"class_path": "StaticPruning", "init_args": {"scores": "craig.npz", "prune_ratio": 0.5}}
    content["trainer"]["callbacks"] = [recorder, pruning]
    Path("fit.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", "fit.yaml"])
    seen = ~load_scores("small.npz", allow_missing=True).scores.isnan()
    assert torch.equal(seen, load_scores("craig.npz").scores > 0)


def test_method_arguments_in_the_file(config):
    content = yaml.safe_load(Path(config).read_text())
    content |= {"method": "Prune4ReL", "method_args": {"threshold": 0.8}, "save_to": "a.npz"}
    Path(config).write_text(yaml.safe_dump(content))
    score(config)
    assert load_scores("a.npz").meta["parameters"]["threshold"] == 0.8


def test_samples_never_scored_are_shown(config, capsys):
    score(config, "--method=EL2N", "--save_to=a.npz", "--trainer.limit_train_batches=5")
    assert "never scored" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["TDDS", "KCenter"])
def test_a_dev_run_writes_nothing(config, method):
    score(config, f"--method={method}", "--save_to=a.npz", "--trainer.fast_dev_run=true")
    assert not Path("a.npz").exists()


def save_text(path):
    Path(path).write_text("no checkpoint")


def save_other(path):
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)


def save_nothing(path):
    torch.save({}, path)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--save_to=a.npz", "--method=KCentre"], "Expected `method` to be one of"),
        (["--save_to=a.npz", "--method_args.windw=3"], "Expected parameters of TDDS, which takes "),
        (
            ["--save_to=a.npz", "--method=KCenter", "--method_args.thresold=3"],
            "Expected parameters of KCenter, which takes first, but got thresold",
        ),
        (["--save_to=a.npz", "--method_args.window=2"], "Expected `window` to be an int >= 3, but got 2."),
        (["--save_to=a.npz", "--method_args.window=x"], "Expected `window` to be an int >= 3, but got 'x'."),
        (["--save_to=a.csv"], "to end in `.npz`, but got 'a.csv'"),
        (["--save_to=a.npz", "--table=a.npz"], "ends in `.csv` or `.parquet`, but got 'a.npz'"),
        ([], "save_to"),
        (["--save_to=a.npz"], "`max_epochs` >= 10 for TDDS"),
        (["--save_to=a.npz", "--method=GraNd"], "Expected `features` for GraNd, but got None. Write"),
        (["--save_to=a.npz", "--method=CRAIG", "--prune_ratio=1"], "`prune_ratio` to be a number in [0, 1)"),
        (["--save_to=a.npz", "--ckpt_path=none.ckpt"], "there is no file 'none.ckpt'"),
        (["--save_to=a.npz", "--method=EL2N", "--checkpoints=[none.ckpt]"], "there is no file 'none.ckpt'"),
        (["--save_to=a.npz", "--method=EL2N", "--checkpoints=[]"], "`checkpoints` to name at least one"),
        (["--save_to=a.npz", "--method=KCenter", "--checkpoints=[a.ckpt]"], "`method` to be one of ['DeepFool'"),
        (["--save_to=a.npz", "--prune_ratio=much"], "prune_ratio"),
        (["--save_to=a.npz", "--model.passes=[]", "--method=EL2N"], "Expected `logits` for EL2N"),
        (["--save_to=a.npz", "--model.passes=[]", "--method=Moderate"], "shows only losses"),
    ],
)
def test_bad_input(config, capsys, args, match):
    assert match in fails(capsys, "--config", config, *args)
    assert not Path("a.npz").exists()


@pytest.mark.parametrize(
    ("method", "argument", "match"),
    [
        ("Prune4ReL", "threshold=2", "`threshold` to be a number in [0, 1), but got 2."),
        ("Moderate", "center=mode", "`center` to be one of ['median', 'mean'], but got 'mode'."),
        ("GLISTER", "rounds=0", "`rounds` to be an int >= 1, but got 0."),
        ("SSP", "max_iter=0", "`max_iter` to be an int >= 1, but got 0."),
        ("DeepFool", "max_iter=0", "`max_iter` to be an int >= 1, but got 0."),
    ],
)
def test_no_module_is_trained_for_bad_arguments(config, capsys, monkeypatch, method, argument, match):
    monkeypatch.setattr(CommandModel, "training_step", None)
    args = [f"--method={method}", f"--method_args.{argument}", "--save_to=a.npz"]
    assert match in fails(capsys, "--config", config, *args)


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_good_arguments_pass_the_trial(method):
    try_parameters(method, {"first": 9} if method in ("KCenter", "ContextualDiversity") else {})


@pytest.mark.parametrize("save", [save_text, save_other, save_nothing])
def test_bad_checkpoints(config, capsys, save):
    save("a.ckpt")
    message = fails(capsys, "--config", config, "--method=EL2N", "--save_to=a.npz", "--ckpt_path=a.ckpt")
    assert "Expected `ckpt_path` to be a checkpoint" in message


def test_mistakes_of_the_module_keep_their_traceback(config, monkeypatch):
    def broken(self, batch, batch_idx):
        raise ValueError("my own")

    monkeypatch.setattr(CommandModel, "training_step", broken)
    with pytest.raises(ValueError, match="my own"):
        score(config, "--method=EL2N", "--save_to=a.npz")
