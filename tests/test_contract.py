"""What every exported method keeps, whatever it selects by; resume and DDP are in files of their own."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_prune.cli import PruneCLI
from lightning_prune.core.checkpoint import STATE_VERSION
from lightning_prune.scoring import ScoreRecorder, load_scores
from tests import contract
from tests.helpers import Model, PlainModel, Remember, make_loader, make_trainer, registry_of

# Runs shorter than a window, as some are here, are warned about.
pytestmark = pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once")

ROOT = Path(__file__).parent.parent
SHARED = {"seed", "warmup_epochs", "scale_lr_schedule", "log"}

cases = pytest.mark.parametrize("case", contract.CASES)
methods = pytest.mark.parametrize("name", contract.METHODS)


def run(callback, model=None, **kwargs):
    """Train five epochs; return the trainer and the model."""
    trainer, model = make_trainer(callback, **{"max_epochs": 5, **kwargs}), model or Model()
    torch.manual_seed(2)
    trainer.fit(model, make_loader())
    return trainer, model


def same_run(first, second):
    (trainer, model), (other_trainer, other) = first, second
    assert model.seen == other.seen
    assert torch.equal(model.layer.weight, other.layer.weight)
    tables = registry_of(trainer).to_dict(), registry_of(other_trainer).to_dict()
    assert tables[0].keys() == tables[1].keys()
    for name, values in tables[0].items():
        assert torch.equal(values.nan_to_num(-1), tables[1][name].nan_to_num(-1)), name


def test_there_are_methods():
    assert {"InfoBatch", "RandomPruning", "StaticPruning"} <= set(contract.METHODS)


@cases
def test_it_prunes_here(case):
    """Else every other test of the contract would say nothing: give the method an entry in `contract.SETTINGS`."""
    trainer, model = run(contract.make(case))
    trained = [len(model.epoch_ids(epoch)) for epoch in range(5)]
    assert min(trained) < 40
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - sum(trained) / 200)
    kept = trainer.callback_metrics["prune/kept_fraction"]
    assert kept == pytest.approx(trained[4] / 40)


@pytest.mark.parametrize("case", [case for case in contract.CASES if contract.make_neutral(case) is not None])
def test_nothing_to_prune_is_the_run_without_us(case):
    """Bit for bit, dropout included, given the same order."""
    seen = []
    for callbacks, model in (([], PlainModel(dropout=0.3)), ([contract.make_neutral(case)], Model(dropout=0.3))):
        torch.manual_seed(5)
        make_trainer(*callbacks, max_epochs=3).fit(model, make_loader(shuffle=False))
        seen.append((model.seen, model.layer.weight.tolist(), torch.get_rng_state().tolist()))
    assert seen[0] == seen[1]


@cases
def test_global_random_numbers_are_left_alone(case):
    after = []
    for callbacks, model in (([], PlainModel()), ([contract.make(case)], Model())):
        torch.manual_seed(7)
        make_trainer(*callbacks, max_epochs=5).fit(model, make_loader(shuffle=False))
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


@cases
def test_same_seed_same_run_and_no_state_in_the_callback(case):
    """A callback can be used again, in a new Trainer, and copied or pickled before or after a run."""
    callback = contract.make(case)
    pickled, copied = pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)
    first = run(callback)
    same_run(first, run(callback))
    same_run(first, run(pickled))
    same_run(first, run(copied))
    same_run(first, run(copy.deepcopy(callback)))
    registry = pickle.loads(pickle.dumps(registry_of(first[0])))
    assert torch.equal(registry.counts, registry_of(first[0]).counts)


def test_recorders_can_be_copied_and_pickled(tmp_path):
    recorder = ScoreRecorder(["AUM", "EL2N"], tmp_path / "scores")
    found = []
    for one in (recorder, copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        run(one)
        found.append([load_scores(path).scores.tolist() for path in sorted((tmp_path / "scores").glob("*.npz"))])
        shutil.rmtree(tmp_path / "scores")
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]


@cases
def test_fit_again_goes_on(case):
    """The same Trainer with more epochs goes on from the state it has."""
    trainer, model = run(contract.make(case), max_epochs=2)
    counts = registry_of(trainer).counts.sum()
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model, make_loader())
    registry = registry_of(trainer)
    assert registry.epoch == 5
    assert registry.counts.sum() > counts
    assert {epoch for epoch, _ in model.seen} == set(range(5))
    assert registry.saved_fraction == pytest.approx(1 - sum(len(ids) for _, ids in model.seen) / 200)


@cases
@pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse
def test_from_yaml(case, tmp_path):
    """What the yaml file says is what Python builds, and what a saved configuration says again."""
    callback = {"class_path": contract.class_path(case), "init_args": contract.arguments(case)}
    config = {
        "model": {"class_path": "tests.helpers.Model"},
        "trainer": {"callbacks": [callback], "logger": False, "accelerator": "cpu", "enable_checkpointing": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cli = PruneCLI(args=["--config", str(tmp_path / "config.yaml")], run=False, save_config_callback=None)
    built = next(c for c in cli.trainer.callbacks if isinstance(c, contract.method_of(case)))
    assert repr(built) == repr(contract.make(case))
    assert built.seed == 1
    saved = yaml.safe_load(cli.parser.dump(cli.config))["trainer"]["callbacks"][0]["init_args"]
    assert saved.items() >= {key: v for key, v in contract.arguments(case).items() if not isinstance(v, dict)}.items()


@methods
def test_docstring_and_signature_agree(name):
    """Every argument is explained, in order, and nothing that is not one; what is raised is said."""
    cls = contract.METHODS[name]
    parameters = list(inspect.signature(cls).parameters.values())
    explained = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(":")[0].strip() for line in explained if line[4] != " "] == [p.name for p in parameters]
    assert "Raises:\n" in inspect.getdoc(cls)
    assert {p.name for p in parameters} >= SHARED
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name in SHARED)
    assert all(p.annotation is not p.empty for p in parameters)


@methods
def test_is_in_the_documentation(name):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"`{name}" in page.read_text() for page in pages)
    assert name in (ROOT / "CHANGELOG.md").read_text()


@cases
@pytest.mark.parametrize(
    ("argument", "value"), [("seed", -1), ("seed", 1.5), ("warmup_epochs", -1), ("warmup_epochs", True)], ids=str
)
def test_shared_arguments_are_checked(case, argument, value):
    with pytest.raises((TypeError, ValueError), match=f"Expected `{argument}` to be an int"):
        contract.make(case, **{argument: value})


@pytest.mark.parametrize("case", [c for c in contract.CASES if "prune_ratio" in contract.make(c).__dict__])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "half"], ids=str)
def test_prune_ratio_is_checked(case, value):
    with pytest.raises((TypeError, ValueError), match=r"Expected `prune_ratio` to be a number in \[0, 1\)"):
        contract.make(case, prune_ratio=value)


@cases
def test_warmup_epochs_train_on_everything(case):
    _, model = run(contract.make(case, warmup_epochs=2))
    for epoch in range(2):
        assert sorted(model.epoch_ids(epoch)) == list(range(40))


@cases
@pytest.mark.parametrize("num_samples", [1, 3])
def test_tiny_datasets(case, num_samples, tmp_path):
    """One sample, and fewer than a batch; methods that read a file need one of that length."""
    if case == "RHOLoss" or case.startswith("StaticPruning"):
        pytest.skip("its file is of 40 samples")
    model = Model()
    make_trainer(contract.make(case), max_epochs=4).fit(model, make_loader(num_samples))
    assert all(model.epoch_ids(epoch) for epoch in range(4))
    assert model.layer.weight.isfinite().all()


class Told(Model):
    """Reports one and the same loss for some samples; what is trained stays finite."""

    def __init__(self, report, where):
        super().__init__()
        self.report, self.where = report, where

    def training_step(self, batch, batch_idx):
        real = self.losses(batch)
        loss = self.weighted_loss(torch.where(self.where[batch[2]], self.report, real), **self.outputs)
        return loss if loss.isfinite() else 0 * real.sum()


IDS = torch.arange(40)


@cases
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", [IDS == 7, IDS % 2 == 0, IDS >= 0], ids=["one", "half", "all"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_losses(case, bad, where):
    """They are counted, the run goes on, and no finite loss is lost."""
    trainer = make_trainer(contract.make(case, warmup_epochs=1), max_epochs=5, logger=Remember())
    model = Told(bad, where)
    trainer.fit(model, make_loader())
    assert trainer.logger.lines[0][1]["prune/nonfinite"] == where.sum()
    assert model.layer.weight.isfinite().all()
    assert registry_of(trainer).losses[~where].isfinite().all()
    assert all(model.epoch_ids(epoch) for epoch in range(5))


@cases
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equal_losses(case):
    trainer, model = make_trainer(contract.make(case), max_epochs=5), Told(0.7, IDS >= 0)
    trainer.fit(model, make_loader())
    losses = registry_of(trainer).losses
    assert losses[losses.isfinite()].unique().tolist() == [pytest.approx(0.7)]
    assert all(model.epoch_ids(epoch) for epoch in range(5))


@cases
def test_state_is_plain(case):
    """What goes into a checkpoint loads with `weights_only=True`."""
    trainer, _ = run(contract.make(case), max_epochs=2)
    buffer = io.BytesIO()
    torch.save(registry_of(trainer).state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["version"] == STATE_VERSION
