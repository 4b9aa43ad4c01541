"""The advisor: its measures, its rule against our own tables, and the command."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lightning_prune import advise as command
from lightning_prune.analysis.advice import Findings, advise, find, spearman, suspected

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
ROW = re.compile(r"(?m)^\| (.+?) \| (.+?) \| ([\d.]+) ± ([\d.]+) \| (.+?) \|")
SEEDS = 5
# What probes find, by `lightning-prune advise` (digits: 3 of 20 epochs) and by `probe` on the data of the noise tables
# (4 of 40 epochs), and on glyphs with `--probe 0.375`, three of eight.
GLYPHS = Findings(8, 3, easy=0.637, below_mean=0.710, stability=0.820, noise=0.065, imbalance=1.0)
DIGITS = Findings(20, 3, easy=0.951, below_mean=0.819, stability=0.907, noise=0.001, imbalance=1.21)
CIFAR = Findings(16, 3, easy=0.522, below_mean=0.678, stability=0.76, noise=0.092, imbalance=1.0)  # `--probe 0.19`
NOISE = {
    "clean labels": Findings(40, 4, 0.871, 0.737, 0.912, 0.003, 1.21),
    "symmetric 20%": Findings(40, 4, 0.511, 0.743, 0.939, 0.162, 1.20),
    "symmetric 40%": Findings(40, 4, 0.103, 0.592, 0.953, 0.365, 1.28),
    "asymmetric 20%": Findings(40, 4, 0.559, 0.672, 0.896, 0.159, 1.31),
    "asymmetric 40%": Findings(40, 4, 0.172, 0.585, 0.763, 0.296, 1.18),
    "pair-flip 20%": Findings(40, 4, 0.461, 0.664, 0.900, 0.175, 1.17),
}


def section(title):
    start = PAGE.index(title)
    return PAGE[start : PAGE.index("\n\n- ", start)]


def base_of(advice):
    return advice.callback["init_args"]["base"]


@pytest.mark.parametrize(
    ("findings", "title", "save"),
    [(DIGITS, "## (a) Methods", save) for save in (0.3, 0.5, 0.7)]
    + [(GLYPHS, "### The same on glyphs", save) for save in (0.3, 0.5, 0.7)],
)
def test_clean_labels(findings, title, save):
    """Never worse than random pruning by more than two standard errors, in the tables of the methods."""
    rows = {(m, asked): (float(mean), float(std)) for m, asked, mean, std, _ in ROW.findall(section(title))}
    asked = f"{save:.0%}".replace("%", " %")
    advised, advised_std = rows[base_of(advise(findings, save))["class_path"], asked]
    random, random_std = rows["RandomPruning", asked]
    assert advised >= random - 2 * ((advised_std**2 + random_std**2) / SEEDS) ** 0.5


@pytest.mark.parametrize(("save", "expected"), [(0.3, "InfoBatch"), (0.5, "OrderDP")])
def test_cifar10(save, expected):
    """Never worse than random pruning by more than two standard errors, in the table of all 50,000 images."""
    page = (Path(__file__).parents[2] / "docs" / "cifar.md").read_text()
    row = r"(?m)^\| `(\w+)` \| ([\d.]+) \| (\d+) \| ([\d.]+) ± ([\d.]+) \|"
    found = [
        (name, float(saved), int(n), float(mean), float(std)) for name, saved, n, mean, std in re.findall(row, page)
    ]
    rows = {name: (mean, std**2 / n) for name, saved, n, mean, std in found if abs(saved - 100 * save) < 1}
    advised = base_of(advise(CIFAR, save))["class_path"]
    assert advised == expected
    (mean, variance), (random, random_variance) = rows[advised], rows["RandomPruning"]
    assert mean >= random - 2 * (variance + random_variance) ** 0.5


FEWER = {name: (float(mean), float(std)) for name, mean, std in re.findall(
    r"(?m)^\| ((?:digits|glyphs), \d+ of \d+) \| ([\d.]+) ± ([\d.]+) \|", PAGE)}  # fmt: skip
"""The fair control, over three seeds: full data for fewer epochs."""


@pytest.mark.parametrize(
    ("findings", "title", "save", "control"),
    [
        (DIGITS, "## (a) Methods", 0.3, "digits, 14 of 20"),
        (DIGITS, "## (a) Methods", 0.5, "digits, 10 of 20"),
        (DIGITS, "## (a) Methods", 0.7, "digits, 6 of 20"),
        (GLYPHS, "### The same on glyphs", 0.3, "glyphs, 6 of 8"),
        (GLYPHS, "### The same on glyphs", 0.5, "glyphs, 4 of 8"),
        (GLYPHS, "### The same on glyphs", 0.7, "glyphs, 2 of 8"),
    ],
)
def test_the_fair_control(findings, title, save, control):
    """A method where it is not worse than fewer epochs by more than two standard errors; else no pruning."""
    asked = f"{save:.0%}".replace("%", " %")
    rows = {m: (float(mean), float(std)) for m, a, mean, std, _ in ROW.findall(section(title)) if a == asked}
    fewer, fewer_std = FEWER[control]
    worth = {name: mean >= fewer - 2 * (std**2 / SEEDS + fewer_std**2 / 3) ** 0.5 for name, (mean, std) in rows.items()}
    advice = advise(findings, save)
    assert worth[base_of(advice)["class_path"]] if advice.callback else not any(worth.values())
    much_better = [name for name, (mean, _) in rows.items() if mean > fewer + 0.03]
    assert (much_better == []) == (control != "glyphs, 2 of 8")
    assert not much_better or base_of(advice)["class_path"] in much_better


DOUBTFUL = {
    "little learnt": Findings(10, 3, easy=0.091, below_mean=0.559, stability=0.794, noise=0.046, imbalance=1.21),
    "unstable": Findings(10, 3, easy=0.0, below_mean=0.530, stability=0.015, noise=0.904, imbalance=1.21),
}
"""What probes of 3 epochs find in the trainings of `examples.experiments.advised`, with seed 0."""


@pytest.mark.parametrize("training", DOUBTFUL)
def test_no_pruning_where_fewer_epochs_are_better(training):
    """And a method that is not worse than them by more than two standard errors where one is better by as much."""
    rows = re.findall(rf"(?m)^\| {training} \| (\w+) \| .* \| ([+-][\d.]+) ± ([\d.]+) \|$", PAGE)
    gains = {method: float(gain) / float(error) for method, gain, error in rows}
    advice = advise(DOUBTFUL[training], 0.4)
    assert (advice.callback is None) == (gains["InfoBatch"] < -2)
    assert advice.callback is None or (gains["InfoBatch"] > 2 and gains[base_of(advice)["class_path"]] >= -2)


@pytest.mark.parametrize("kind", NOISE)
def test_wrong_labels(kind):
    """An aligned method, which is not worse than random pruning; on clean labels another one."""
    rows = {m: (float(gain), float(error)) for k, m, gain, error in noise_rows() if k == kind}
    advice = base_of(advise(NOISE[kind], 0.25))
    name = advice["class_path"]
    assert (name == "AlignPrune") == (kind != "clean labels")
    if name == "AlignPrune":
        assert advice["init_args"]["rescale"] is False
        name = "AlignPrune, rescale=False"
    (advised, error), (random, random_error) = rows[name], rows["RandomPruning"]
    assert advised >= random - 2 * (error**2 + random_error**2) ** 0.5


def noise_rows():
    found = re.findall(r"(?m)^\| ([\w -]+%?) \| (.+?) \| [\d.]+ ± [\d.]+ \| ([+-][\d.]+) ± ([\d.]+) \|", PAGE)
    assert len(found) >= 60
    return found


@pytest.mark.parametrize(
    ("changes", "save", "expected"),
    [
        ({}, 0.3, "InfoBatch"),
        ({}, 0.6, "OrderDP"),
        ({"imbalance": 30.0}, 0.6, "RePB"),
        ({"noise": 0.1}, 0.3, "AlignPrune"),
        ({"noise": 0.2, "easy": 0.1}, 0.6, "AlignPrune"),  # the noise comes first: it is why little is learnt
        ({"noise": None, "imbalance": None}, 0.3, "InfoBatch"),
        ({"easy": 0.2}, 0.3, "InfoBatch"),
        ({"easy": 0.45}, 0.6, "OrderDP"),
        ({"stability": 0.1}, 0.3, None),
        ({"stability": 0.1, "noise": 0.9}, 0.3, None),  # a model that does not learn suspects every label
    ],
)
def test_the_rule(changes, save, expected):
    found = replace(Findings(20, 3, easy=0.9, below_mean=0.7, stability=0.8), **changes)
    advice = advise(found, save)
    assert (None if advice.callback is None else base_of(advice)["class_path"]) == expected
    assert advice.reasons
    assert advice.reaches["InfoBatch"] == pytest.approx(0.9 * 0.7 * 16 / 20)  # not the first epoch, nor the last three


def test_what_no_method_can_save():
    with pytest.raises(ValueError, match="a method can reach in 10 epochs, at most 0.990, but got 0.995"):
        advise(Findings(10, 3, 0.9, 0.7, 0.8), 0.995)


def test_the_measures():
    nan = torch.nan
    assert spearman(torch.tensor([1.0, 2, 3, nan]), torch.tensor([9.0, 4, 1, 5])) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 1, 2, 2]), torch.tensor([1.0, 1, 2, 2])) == pytest.approx(1)
    assert spearman(torch.ones(4), torch.arange(4.0)) == 0.0
    losses = [torch.tensor([4.0, 4, 4, 4]), torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.5, 0.9, 2, 6])]
    found = find(losses, 30, targets=torch.tensor([0, 0, 0, 2]))
    assert (found.easy, found.below_mean, found.stability, found.imbalance) == (0.5, 0.75, pytest.approx(1), 3.0)
    with pytest.raises(ValueError, match="a probe of at least 3 epochs, but got 2"):
        find(losses[:2], 30)


def test_suspected_labels():
    """Three of ten say class 0 of what the model, rightly, takes for class 1."""
    targets = torch.tensor([0] * 6 + [1] * 4)
    confidences = torch.tensor([0.9, 0.8, 0.9, 0.05, 0.1, 0.2, 0.8, 0.9, 0.7, 0.8])
    assert suspected(confidences, 1 - confidences, 1 - targets, targets) == pytest.approx(0.3)


CONFIG = {
    "trainer": {
        "max_epochs": 30,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "callbacks": [{"class_path": "InfoBatch"}],
    },
    "model": {"class_path": "examples.experiments.noise.NoisyModel"},
    "data": {"class_path": "examples.experiments.noise.NoisyDigits", "init_args": {"rate": 0.3}},
}


def call(tmp_path, *arguments, config=CONFIG):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command.main(["--config", str(path), *arguments])


@pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse, and Lightning's advice
def test_the_command(tmp_path, capsys, monkeypatch):
    """On digits with 30 % wrong labels; what it prints to copy is what `fit` takes, and it writes nothing."""
    monkeypatch.chdir(tmp_path)
    writing = [
        {"class_path": "ScoreRegistry", "init_args": {"save_to": "losses.npz"}},
        {"class_path": "PruningReport"},
        {"class_path": "LearningRateMonitor"},
    ]
    trainer = {**CONFIG["trainer"], "logger": True, "enable_checkpointing": True}
    trainer["callbacks"] = [*CONFIG["trainer"]["callbacks"], *writing]
    call(tmp_path, "--save=0.3", config={**CONFIG, "trainer": trainer})
    printed = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert f"  lightning-prune fit --config={tmp_path / 'config.yaml'} --trainer.max_epochs=21\n" in printed
    noise = float(re.search(r"suspected wrong labels +([\d.]+)%", printed)[1])
    assert 20 < noise < 40
    assert "Probe: 3 of 30 epochs" in printed
    assert "Advice: AlignPrune, to save 30%." in printed
    (callback,) = yaml.safe_load(printed[printed.index("trainer:") :])["trainer"]["callbacks"]
    from lightning_prune.cli import PruneCLI

    config = {**CONFIG, "trainer": {**CONFIG["trainer"], "callbacks": [callback]}}
    (tmp_path / "advised.yaml").write_text(yaml.safe_dump(config))
    PruneCLI(args=["fit", f"--config={tmp_path / 'advised.yaml'}"], save_config_callback=None, check_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "changes", "match"),
    [
        (["--save=1.2"], {}, r"Expected `--save` to be a number in \(0, 1\), but got 1.2"),
        (["--save=0.995"], {}, "Expected `save` that a method can reach in 30 epochs, at most 0.990, but got 0.995"),
        ([], {"max_epochs": 20}, "a probe of at least 3 epochs.* 0.1 of 20 epochs is 2. Give `--probe 0.15` or more"),
        ([], {"max_steps": 30}, "a training limited by `trainer.max_epochs`"),
    ],
    ids=["share", "unreachable", "short", "steps"],
)
def test_mistakes(monkeypatch, tmp_path, capsys, arguments, changes, match):
    monkeypatch.setattr(command, "probe", None)  # before it
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, *arguments, config={**CONFIG, "trainer": {**CONFIG["trainer"], **changes}})
    assert ended.value.code == 2
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore")
def test_a_module_without_losses_by_sample(tmp_path, capsys):
    config = {**CONFIG, "model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}, "data": None}
    with pytest.raises(SystemExit):
        call(tmp_path, config=config)
    assert "Expected a module with `WeightedLossMixin`, but `BoringModel` does not have it" in capsys.readouterr().err
