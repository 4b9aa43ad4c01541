"""The committed experiments are commands that `compare` accepts, and RePB's ablations leave out what they say."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from examples.cifar.fingerprint import write_drawn
from examples.digits import static
from examples.digits.task import DigitsData, DigitsModel
from examples.experiments import analysis, drift, hard_and_noisy, label_issues, noise, phases
from examples.experiments import run as experiments
from examples.experiments.hard_and_noisy import WINDOW, alignment, curves, groups_of
from examples.experiments.noise import NoisyDigits, Setting, align, reference_ids
from examples.experiments.repb_ablation import RePBWithoutResampling, RePBWithoutRescaling, RePBWithoutWindows
from examples.experiments.reporting import spread
from examples.experiments.run import EXPERIMENTS
from lightning_prune import AlignPrune, InfoBatch, PruningMonitor, RePB
from lightning_prune.compare.main import _resolve
from lightning_prune.compare.methods import read_methods
from lightning_prune.parser import parse_compare
from tests.helpers import Model, make_loader, make_trainer

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_commands_can_start(name, monkeypatch):
    """Configurations, overrides and methods are read and built, as before the first run."""
    monkeypatch.chdir(ROOT)
    for _, command in EXPERIMENTS[name]:
        config = [] if "--config" in command else ["--config", "examples/experiments/digits.yaml"]
        options, rest = parse_compare([*config, *command])
        methods = [method for text in options.methods for method in read_methods(text)]
        assert _resolve(options.config, rest, methods)[0]["trainer"]["max_epochs"] > 1
        assert bool(options.prune_ratios) == any(method.setting for method in methods)
        assert all(0 < ratio < 1 for ratio in options.prune_ratios)


def run(method):
    monitor, weights = PruningMonitor(), []

    class Watched(Model):
        def on_train_epoch_start(self):
            registry = next(c for c in self.trainer.callbacks if hasattr(c, "selection"))
            weights.append((set(registry.selection.indices.tolist()), registry.selection.weights))

    torch.manual_seed(0)
    make_trainer(method, monitor, max_epochs=8).fit(Watched(), make_loader(200, 20))
    return weights


def test_without_resampling_nobody_returns():
    epochs = [ids for ids, _ in run(RePBWithoutResampling(0.7, seed=0))]
    assert all(later <= earlier for earlier, later in itertools.pairwise(epochs))
    assert len(epochs[-1]) < len(epochs[0])
    returned = [ids for ids, _ in run(RePB(0.7, seed=0))]
    assert not all(later <= earlier for earlier, later in itertools.pairwise(returned))


def test_without_rescaling_all_weigh_one():
    assert all(weights is None for _, weights in run(RePBWithoutRescaling(0.7, seed=0)))
    assert any(weights is not None and float(weights.max()) > 1 for _, weights in run(RePB(0.7, seed=0)))


def test_without_windows_losses_do_not_count():
    """The chances to stay are RePB's on average, and all alike."""
    seen = []

    class Check(RePB):
        def on_epoch_recorded(self, registry, record):
            super().on_epoch_recorded(registry, record)
            seen.append((registry.column("repb_chance").clone(), registry.selected.clone()))

    method = RePBWithoutWindows(0.7, rescale=False, seed=0)
    method.base = Check(0.7, seed=0)
    columns = []
    plain = type(method).on_epoch_recorded

    def noted(self, registry, record):
        plain(self, registry, record)
        columns.append(registry.column("repb_chance").clone())

    type(method).on_epoch_recorded = noted
    try:
        assert all(weights is None for _, weights in run(method))
    finally:
        type(method).on_epoch_recorded = plain
    for (chance, trained), column in zip(seen, columns, strict=True):
        assert len(torch.unique(column[trained])) == 1
        assert float(column[trained][0]) == pytest.approx(float(chance[trained].mean()))
        assert torch.equal(column[~trained], chance[~trained])
    assert any(weights is not None for _, weights in run(RePBWithoutWindows(0.7, seed=0)))


def test_noisy_digits_know_their_noise():
    data = NoisyDigits("symmetric", 0.4)
    data.setup("fit")
    clean = NoisyDigits("symmetric", 0.0)
    clean.setup("fit")
    labels, truth = data.train.tensors[1], clean.train.tensors[1]
    assert torch.equal(data.train.flipped, labels != truth)
    assert float(data.train.flipped.double().mean()) == pytest.approx(0.4, abs=1e-3)


def test_a_reference_is_as_large_and_as_wrong_as_asked():
    flipped = torch.arange(100) % 5 < 2
    ids = reference_ids(flipped, 20, 0.25)
    assert len(set(ids)) == 20
    assert int(flipped[ids].sum()) == 5
    assert int(flipped[reference_ids(flipped, 50, 0.0)].sum()) == 0


@pytest.mark.parametrize("name", noise.EXPERIMENTS)
def test_settings_of_the_noise_experiments(name):
    for setting in noise.EXPERIMENTS[name].values():
        data = NoisyDigits(setting.kind, setting.rate)
        data.setup("fit")
        method = setting.make(data.train.flipped)
        if isinstance(method, AlignPrune):
            assert 2 * method.window <= setting.epochs
            assert method.reference == "self" or len(method.reference) >= 10


def test_alignment_keeps_fewer_wrong_labels(monkeypatch):
    rows = {noise.BASE: Setting(noise.METHODS["InfoBatch"], epochs=14), ("own",): Setting(align(4, size=20), epochs=14)}
    monkeypatch.setitem(noise.EXPERIMENTS, "windows", rows)
    by_loss, by_alignment = (noise.run("windows", row, 0) for row in rows)
    assert all(0.5 < result["accuracy"] <= 1 and 0 < result["saved"] < 0.5 for result in (by_loss, by_alignment))
    assert by_alignment["noise"] < 0.4 < by_loss["noise"]


def test_a_table_of_wrong_labels(monkeypatch):
    rows = ("20%", "InfoBatch"), ("20%", "AlignPrune")
    monkeypatch.setitem(noise.EXPERIMENTS, "kinds", dict.fromkeys(rows, Setting(align())))
    accuracies = {rows[0]: (0.5, 0.6), rows[1]: (0.54, 0.62)}
    results = {
        (row, seed): {"accuracy": accuracy, "noise": 0.25, "saved": 0.125}
        for row, pair in accuracies.items()
        for seed, accuracy in enumerate(pair)
    }
    assert noise.table("kinds", results).splitlines() == [
        "| noise | method | accuracy, % | against InfoBatch, points | wrong labels kept, % | saved, % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| 20% | InfoBatch | 55.0 ± 7.1 | +0.0 ± 0.0 | 25.0 | 12.5 |",
        "| 20% | AlignPrune | 58.0 ± 5.7 | +3.0 ± 1.0 | 25.0 | 12.5 |",
    ]


def test_one_seed_has_no_deviation(monkeypatch):
    monkeypatch.setitem(noise.EXPERIMENTS, "windows", {noise.BASE: Setting(align())})
    results = {(noise.BASE, 7): {"accuracy": 0.5, "noise": 0.25, "saved": 0.125}}  # a first seed of 7
    assert noise.table("windows", results).splitlines()[-1] == "| InfoBatch | 50.0 | +0.0 | 25.0 | 12.5 |"
    assert spread([0.5]) == "0.500"


@pytest.mark.parametrize("module", [noise, analysis, hard_and_noisy, static, experiments])
def test_every_experiment_takes_seeds_and_a_first_seed(module, monkeypatch, capsys):
    """And none a number of seeds below 1."""
    name = ["x"] if module in (analysis, hard_and_noisy, static) else ["x", next(iter(module.EXPERIMENTS))]
    monkeypatch.setattr(sys, "argv", [*name, "--first_seed", "3", "--seeds", "0"])
    with pytest.raises(SystemExit):
        module.main()
    assert "argument --seeds: Expected a number of at least 1, but got 0." in capsys.readouterr().err


def test_curves_of_hard_and_mislabelled_samples():
    epochs, flipped = torch.arange(40.0)[:, None], torch.arange(60) >= 40
    falling, late, rising = 0.9 - epochs / 50, 3 - epochs / 40, 1 + epochs / 40  # easy, hard, mislabelled
    losses = torch.where(flipped, rising, torch.where(torch.arange(60) < 4, late, falling))
    groups = groups_of(losses, flipped)
    assert groups.tolist() == [1] * 4 + [0] * 36 + [2] * 20
    assert torch.allclose(alignment(losses, WINDOW), torch.where(flipped, -1.0, 1.0))
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in curves([(losses, groups)]).splitlines()]
    assert rows[5][0] == "**hard above mislabelled, by loss**"
    assert rows[5][1:] == ["**0.00**"] * 6
    assert rows[9][1:] == ["", *["**1.00**"] * 5]
    assert [row[2] for row in rows[6:9]] == ["1.00", "1.00", "-1.00"]


def test_wrong_labels_are_found_by_a_run_and_by_cleanlab():
    """One short case of each, whole: the figures that the table has."""
    pytest.importorskip("cleanlab")
    task = label_issues.digits("symmetric", 0.2, 0)._replace(epochs=2)
    task = task._replace(images=task.images[:300], given=task.given[:300], wrong=task.wrong[:300])
    figures = {**label_issues.ours(task, 0, InfoBatch()), "cleanlab": label_issues.cleanlab(task, 0)}
    assert all(0 < one[name] <= 1 for one in figures.values() for name in ("ap", "auroc", "precision"))
    assert {name for name, one in figures.items() if "number" in one} == {"LabelIssues", "cleanlab"}
    results = [{"case": {"labels": "symmetric", "rate": 0.2, "seed": 0}, "figures": figures}]
    text = label_issues.table(results)
    header, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert dict(zip(header, row, strict=True))["AP, cleanlab"] == f"{figures['cleanlab']['ap']:.3f}"
    assert row[:3] == ["symmetric 20%", "1", f"{figures['LabelIssues']['ap']:.3f}"]
    assert all(row)
    numbers = label_issues.number_table(results)
    names = ("LabelIssues", "prediction differs", "cleanlab's rule", "cleanlab, 5-fold")
    assert numbers.startswith(f"| labels | seeds | {' | '.join(f'{name}, ratio' for name in names)} |\n")
    own = [figures["LabelIssues"][name] for name in ("number", "differs", "confident")]
    assert " | ".join(f"{value:.2f}" for value in [*own, figures["cleanlab"]["number"]]) in numbers


def test_human_labels_are_those_of_cifar_10n(tmp_path):
    """Of the drawn files, the first 40 % of the worst labels are wrong."""
    write_drawn(tmp_path)
    task = label_issues.cifar(tmp_path, "worst", 64, 1)
    assert task.images.shape == (64, 3, 32, 32)
    assert bool(task.wrong.all())
    assert not label_issues.cifar(tmp_path, "aggregate", 64, 1).wrong.any()
    whole = label_issues.cifar(tmp_path, "worst", 160, 1)
    assert whole.wrong.nonzero().flatten().tolist() == list(range(64))
    assert 0 < label_issues.ours(whole, 0, InfoBatch())["LabelIssues"]["ap"] <= 1


def test_images_are_shifted_and_mirrored():
    images = torch.arange(3 * 32 * 32, dtype=torch.int32).view(1, 3, 32, 32).repeat(8, 1, 1, 1)
    torch.manual_seed(0)
    for image in label_issues.augment(images):
        inner = image[:, 8:24, 8:24]
        right, down = (inner[0, 0, 1] - inner[0, 0, 0]).abs(), inner[0, 1, 0] - inner[0, 0, 0]
        assert (int(right), int(down)) == (1, 32)


def test_drift_of_a_network_is_within_the_bound(monkeypatch):
    """RePB's Eq. 5 on 96 digits; the constants are those of the states met, and each is checked by autograd."""
    data = DigitsData()
    data.setup("fit")
    few = torch.utils.data.TensorDataset(*(values[:96] for values in data.train.tensors))
    monkeypatch.setattr(drift, "DigitsData", lambda: SimpleNamespace(setup=lambda stage: None, train=few))
    noted = drift.train(0, {"early": 0})["early"]
    assert len(noted.losses) == 6
    for steps in (1, 3, 5):
        measured = noted.measured(steps)
        assert 0 < measured["mean drift"] < measured["largest drift"] < measured["bound"]
    pairs = [drift.score_drift(a, b).mean for a, b in itertools.pairwise(noted.losses)]
    assert noted.measured(1)["mean drift"] == pytest.approx(sum(pairs) / 5)

    model = noise.NoisyModel()
    images, labels = few.tensors
    lengths = drift.lengths_of(model, images, labels)()
    for i in (0, 50, 95):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images[i, None]), labels[i, None]).backward()
        norm = torch.cat([one.grad.flatten() for one in model.parameters()]).norm()
        assert float(lengths[i]) == pytest.approx(float(norm), rel=1e-4)


def test_phases_are_means_of_the_epochs_in_them(monkeypatch, capsys):
    """OrderDP's Table 9 from runs that are made up: rows of all methods, accuracy and norm by phase."""
    ramp = torch.arange(20, dtype=torch.float32)
    made_up = {"accuracy": ramp, "norm": 2 * ramp, "saved": torch.tensor([0.61])}
    monkeypatch.setattr(phases, "run", lambda name, ratio, seed: {**made_up, "accuracy": ramp + seed})
    monkeypatch.setattr(sys, "argv", ["phases", "--seeds", "2"])
    phases.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    accuracies, norms = ([row for row in rows if len(row) == size and row[0] in phases.METHODS] for size in (8, 7))
    assert [row[0] for row in accuracies] == [row[0] for row in norms] == list(phases.METHODS)
    means = ["3.0 ± 0.7", "8.0 ± 0.7", "12.0 ± 0.7", "17.0 ± 0.7", "19.5 ± 0.7"]
    assert accuracies[0][1:] == ["61 %", *means, "1.00 ± 0.00"]
    of_norms = ["5.000", "15.000", "23.000", "33.000", "38.000", "3.162"]  # the deviation of 2, 4, 6, 8, 10
    assert norms[-1][1:] == [f"{value} ± 0.000" for value in of_norms]


def test_what_the_methods_of_the_phases_save(monkeypatch):
    """OrderDP trains 39 % of the samples in each epoch, monitored."""
    monkeypatch.setattr(phases, "EPOCHS", 2)
    monkeypatch.setattr(phases, "DigitsModel", lambda width: DigitsModel(width=2))
    found = phases.run("OrderDP", 0.61, 0)
    assert found["accuracy"].shape == found["norm"].shape == (2,)
    assert float(found["saved"]) == pytest.approx(0.61, abs=0.01)
    assert bool((found["norm"] > 0).all())
