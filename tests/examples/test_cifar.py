"""The experiments on CIFAR-10, on tiny files of its real formats."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from examples.cifar import run
from examples.cifar.fingerprint import write_drawn
from examples.cifar.task import Cifar10Data, Cifar10Model, crop_and_flip
from examples.experiments import label_issues
from lightning_prune import InfoBatch, PruningMonitor
from lightning_prune.compare.main import _resolve
from lightning_prune.compare.methods import read_methods
from lightning_prune.parser import parse_compare
from lightning_prune.scoring import load_scores
from tests.examples.conftest import ROOT
from tests.helpers import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """CIFAR-10 of 100 images to train on: files of torchvision's, keys as bytes as in the original; human labels."""
    root = tmp_path_factory.mktemp("data")
    write_drawn(root, images_per_file=20)
    return root


def test_data(root):
    data = Cifar10Data(str(root), "worst")
    data.setup("fit")
    assert data.train.tensors[0].shape == (100, 3, 32, 32)
    assert data.train.tensors[0].dtype == torch.uint8
    assert int(data.train.flipped[:40].sum()) == int(data.train.flipped.sum()) == 40
    assert len(data.held_out) == 20
    clean = Cifar10Data(str(root))
    clean.setup("fit")
    assert not clean.train.flipped.any()
    assert torch.equal(clean.train.tensors[1] != data.train.tensors[1], data.train.flipped)


def test_the_authors_file_of_human_labels(root, tmp_path):
    (tmp_path / "cifar-10-batches-py").symlink_to(root / "cifar-10-batches-py")
    torch.save({"aggre_label": np.zeros(100, np.int64)}, tmp_path / "CIFAR-10_human.pt")
    data = Cifar10Data(str(tmp_path), "aggregate")
    data.setup("fit")
    assert data.train.tensors[1].tolist() == [0] * 100
    torch.save({"aggre_label": np.zeros(99, np.int64)}, tmp_path / "CIFAR-10_human.pt")
    with pytest.raises(ValueError, match="Expected a label for each of 100 images, but got 99 of 'aggregate'"):
        data.setup("fit")


def test_crops_are_moved_and_flipped_images():
    """Against a plain loop over all the moves."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    cropped = crop_and_flip(images)
    assert cropped.dtype == torch.uint8
    assert cropped.shape == images.shape
    moves = set()
    for image, crop in zip(images, cropped, strict=True):
        padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect"))
        windows = {(t, l): padded[:, t : t + 8, l : l + 8] for t in range(5) for l in range(5)}  # noqa: E741
        found = [(*at, f) for at, w in windows.items() for f in (0, 1) if torch.equal(w.flip(2) if f else w, crop)]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 5


def test_resnet_18_takes_images_of_bytes():
    model = Cifar10Model("resnet18")
    assert model.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_it_trains_and_wrong_labels_are_watched(root):
    torch.manual_seed(0)
    trainer = make_trainer(InfoBatch(), PruningMonitor(flipped="flipped"), max_epochs=2)
    trainer.fit(Cifar10Model(), datamodule=Cifar10Data(str(root), "worst", batch_size=20))
    assert 0 <= float(trainer.callback_metrics["val_accuracy"]) <= 1
    assert 0.2 < float(trainer.callback_metrics["prune/noise_ratio"]) < 0.6


@pytest.mark.parametrize("name", run.COMPARED)
def test_commands_can_start(name, root, tmp_path, monkeypatch):
    """Configurations and methods are read and built, as before the first run; `static` scores first."""
    monkeypatch.chdir(ROOT)
    args = run.make_parser().parse_args([name, "--data_root", str(root), "--epochs", "6", "--output", str(tmp_path)])
    commands = run.commands(args)
    assert len(commands) == (3 if name == "human-noise" else 1)
    for command in commands[:1]:  # the others have other labels
        options, rest = parse_compare(command[1:])
        methods = [method for text in options.methods for method in read_methods(text)]
        config, _ = _resolve(options.config, rest, methods[:2])
        assert config["trainer"]["max_epochs"] == 6
        assert config["data"]["init_args"]["root"] == str(root)
        assert bool(options.prune_ratios) == any(method.setting for method in methods)
        if name == "static":
            named = {"random", "TDDS", "EL2N", "AUM", "Forgetting", "DUAL", "Moderate", "CCS on AUM"}
            assert named <= {method.label for method in methods}
            files = [str(method.init_args["scores"]) for method in methods]
            assert files[0] == "random"
            assert all(len(load_scores(file).scores) == 100 for file in files[1:])
        assert options.jobs == (1 if name == "time" else 2)
        monitors = [callback["class_path"] for callback in config["trainer"]["callbacks"]]
        assert monitors == (["lightning_prune.PruningMonitor"] if name == "human-noise" else [])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["methods", "--data_root", "nowhere"], "data_batch_1 to 5 and test_batch in nowhere/cifar-10-batches-py, but"),
        (
            ["human-noise", "--data_root", "{root}/bare"],
            "as CIFAR-10_human.pt or human_aggre.npy, but there is neither",
        ),
        (["methods", "--data_root", "{root}", "--seeds", "0"], "Expected a number of at least 1, but got 0."),
        (["method", "--data_root", "{root}"], "invalid choice: 'method'"),
        (
            ["static", "--data_root", "{root}", "--methods", "SeTa"],
            "`--methods` with methods, time only, but got it with",
        ),
        (["label-issues", "--data_root", "{root}", "--arch", "resnet18"], "only, but got it with label-issues."),
    ],
)
def test_mistakes(given, match, root, monkeypatch, capsys):
    bare = root / "bare"
    bare.mkdir(exist_ok=True)
    if not (bare / "cifar-10-batches-py").exists():
        (bare / "cifar-10-batches-py").symlink_to(root / "cifar-10-batches-py")
    monkeypatch.setattr(sys, "argv", ["run", *(text.format(root=root) for text in given)])
    with pytest.raises(SystemExit) as error:
        run.main()
    assert error.value.code == 2
    assert match in capsys.readouterr().err


def test_label_issues(root, tmp_path, monkeypatch, capsys):
    """As a command, which keeps what it has run."""
    (tmp_path / "cifar-10-batches-py").symlink_to(root / "cifar-10-batches-py")
    for name in ("aggre", "random1", "worse"):
        (tmp_path / f"human_{name}.npy").symlink_to(root / "human_worse.npy")  # the others of `root` have none wrong
    given = ["label-issues", "--data_root", str(tmp_path), "--epochs", "1", "--seeds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run", *given])
    run.main()
    first = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in first.splitlines()[2:5]] == [
        f"| {name}, 50,000 images" for name in ("aggregate", "random1", "worst")
    ]
    assert "AUROC, cleanlab" in first
    assert len((tmp_path / "label-issues" / "results.jsonl").read_text().splitlines()) == 3
    monkeypatch.setattr(label_issues, "run", None)
    monkeypatch.setattr(sys, "argv", ["run", *given])
    run.main()
    assert capsys.readouterr().out == first


def test_tables_from_runs(tmp_path):
    def add(name, label, ratio, accuracies, noise):
        folder = tmp_path / "worst" / "runs" / name
        folder.mkdir(parents=True)
        curve = [
            {"seconds": 10.0 * (i + 1), "cpu_seconds": 8.0 * (i + 1), "val_accuracy": a, "prune/noise_ratio": noise}
            for i, a in enumerate(accuracies)
        ]
        (folder / "result.json").write_text(json.dumps({"label": label, "ratio": ratio, "curve": curve}))

    add("a", "full data", None, [0.5, 0.7, 0.82] + [0.82] * 7, 0.4)
    add("b", "RePB", 0.3, [0.5, 0.81] + [0.8] * 8, 0.5)
    add("c", "RePB", 0.5, [0.5, 0.6] + [0.7] * 8, 0.3)
    assert run.time_to_level(tmp_path / "worst", 0.8).splitlines()[2:] == [
        "| full data | 1 of 1 | 30 | 24 | 1.00 |",
        "| RePB, 0.3 | 1 of 1 | 20 | 16 | 1.50 |",
        "| RePB, 0.5 | 0 of 1 | - | - | - |",
    ]
    assert run.wrong_labels_kept(tmp_path / "worst").splitlines()[2:] == ["| full data | 40.0 |", "| RePB | 40.0 |"]
