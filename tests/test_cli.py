"""From yaml: what a user runs, what `--print_config` tells, and how a mistake ends."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import pytest
import yaml

from examples.digits.task import DigitsModel
from lightning_prune.cli import PruneCLI, main
from tests.processes import python

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "examples" / "digits" / "infobatch.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)


def fails(capsys, *args):
    with pytest.raises(SystemExit) as error:
        main(["fit", *args])
    assert error.value.code == 2
    out = capsys.readouterr().err
    message = out[out.index("error:") :]
    assert "Traceback" not in out
    assert len(message.splitlines()) <= 8
    return message


def test_fit_as_a_command(tmp_path):
    out, errors = python("-m", "lightning_prune", "fit", "--config", CONFIG, "--trainer.max_epochs=2")
    assert "prune/kept" in out
    assert "max_epochs=2` reached" in errors


def test_fit_in_process(tmp_path):
    main(["fit", "--config", CONFIG, "--trainer.fast_dev_run=true", "--trainer.callbacks.prune_ratio=0.25"])
    assert not list(tmp_path.iterdir())


def test_print_config_shows_defaults_and_help(capsys):
    with pytest.raises(SystemExit) as error:
        main(["fit", "--config", CONFIG, "--print_config"])
    assert error.value.code == 0
    out = capsys.readouterr().out
    config = yaml.safe_load(out)
    assert config["trainer"]["callbacks"] == [
        {
            "class_path": "lightning_prune.InfoBatch",
            "init_args": {
                "prune_ratio": 0.5,
                "anneal_ratio": 0.875,
                "mode": "exact",
                "seed": None,
                "warmup_epochs": 0,
                "scale_lr_schedule": True,
                "log": True,
            },
        }
    ]
    assert "# Share of the below-mean samples left out" in out


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ("--trainer.callbacks.prune_ratio=1.5", "Expected `prune_ratio` to be a number in [0, 1), but got 1.5."),
        ("--trainer.callbacks.prune_ratio=much", "Expected a number, but got much\n"),
        ("--trainer.callbacks.prune_rat=0.5", "Option 'prune_rat' is not accepted"),
        ("--trainer.callbacks.mode=sometimes", "['exact', 'bernoulli'], but got sometimes\n"),
        (
            "--trainer.max_epochs=two",
            "`trainer.max_epochs`:\n  Expected a whole number, but got two\n  See `--trainer.",
        ),
        ("--model.widht=3", "'widht' is not accepted\n  DigitsModel takes width, lr. Did you mean `width`?\n"),
        ("--model.width=wide", "`width`:\n  Expected a whole number, but got wide\n  See `--model.width=wide`.\n"),
        (
            "--ckpt_path=no.ckpt",
            "Expected `ckpt_path` to be a checkpoint, but there is no file 'no.ckpt'.\n  See "
            "`--ckpt_path=no.ckpt`.\nFor all arguments: lightning-prune fit --help\n",
        ),
        ("--trainer.callbacks=InfoBach", "Pruning methods: "),
        ("--trainer.callbacks.seed=-1", "Expected `seed` to be an int >= 0, but got -1."),
    ],
)
def test_mistakes_end_in_one_message(argument, match, capsys):
    assert match in fails(capsys, "--config", CONFIG, argument)


def test_mistakes_in_the_file(capsys, tmp_path):
    config = yaml.safe_load(Path(CONFIG).read_text())
    config["trainer"]["callbacks"][0]["init_args"] = {"prune_ration": 0.5}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    assert "prune_ration" in fails(capsys, "--config", "bad.yaml")
    assert "nowhere.yaml" in fails(capsys, "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (
            {"class_path": "StaticPruning", "init_args": {"scores": "no.npz"}},
            "for `scores`, but there is none at 'no.npz'",
        ),
        ({"class_path": "ScoreRecorder", "init_args": {"save_to": "taken/a.npz"}}, "to be able to write 'taken/a.npz'"),
        ({"class_path": "RHOLoss", "init_args": {"irreducible_losses": "no.npz"}}, "there is none at 'no.npz'"),
    ],
)
def test_files_are_looked_for_before_model_and_data_are_built(callback, match, capsys, monkeypatch):
    monkeypatch.setattr(DigitsModel, "__init__", wraps(DigitsModel.__init__)(lambda *_, **__: pytest.fail("built")))
    content = yaml.safe_load(Path(CONFIG).read_text())
    content["trainer"]["callbacks"] = [callback]
    Path("run.yaml").write_text(yaml.safe_dump(content))
    Path("taken").write_text("a file")
    assert match in fails(capsys, "--config", "run.yaml")


def test_a_random_coreset_needs_no_file():
    random = {"class_path": "StaticPruning", "init_args": {"scores": "random", "prune_ratio": 0.9}}
    content = yaml.safe_load(Path(CONFIG).read_text())
    content["trainer"] |= {"callbacks": [random], "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    Path("run.yaml").write_text(yaml.safe_dump(content))
    cli = PruneCLI(args=["fit", "--config", "run.yaml"])
    assert float(cli.trainer.callback_metrics["prune/kept_fraction"]) == pytest.approx(0.1, abs=1e-3)


def test_a_checkpoint_that_is_none(capsys):
    for content in ("trainer: {}", ""):
        Path("text.ckpt").write_text(content)
        assert "Expected `ckpt_path` to be a checkpoint, but it cannot be read: " in fails(
            capsys, "--config", CONFIG, "--ckpt_path=text.ckpt"
        )


def test_config_is_saved_beside_the_logs_only(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    args = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    main(["fit", "--config", CONFIG, *args, "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
          "--trainer.logger.save_dir=logs"])  # fmt: skip
    assert (tmp_path / "config.yaml").read_text() == "mine"
    saved = yaml.safe_load(next(tmp_path.glob("logs/**/config.yaml")).read_text())
    assert saved["trainer"]["callbacks"][0]["class_path"] == "lightning_prune.InfoBatch"


def test_an_option_is_not_abbreviated(capsys):
    """`--seed 3` would start a training."""
    message = fails(capsys, "--config", CONFIG, "--seed=3")
    assert "unrecognized arguments: --seed=3" in message
    assert "Did you mean `seed_everything`?" in message


def test_the_short_form_is_shown_how_to_be_written(tmp_path, capsys):
    content = yaml.safe_load(Path(CONFIG).read_text())
    content["trainer"]["callbacks"] = [{"InfoBatch": {"prune_ratio": 0.5}}]
    Path("run.yaml").write_text(yaml.safe_dump(content))
    message = fails(capsys, "--config", "run.yaml")
    assert "- class_path: InfoBatch\n        init_args:\n          prune_ratio: ..." in message
    assert "See run.yaml, line" in message
