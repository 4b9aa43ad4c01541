"""Wrong labels: the rule against loops, what it must not be misled by, and the callback in real runs."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_prune import InfoBatch, LabelIssues, OrderDP, Pruner, RandomPruning, ScoreRegistry
from lightning_prune.analysis import label_doubt, label_issues, sample_names, save_issues, summarize_issues
from lightning_prune.analysis.label_evidence import LabelEvidence
from lightning_prune.analysis.label_rows import read_rows
from lightning_prune.cli import main
from lightning_prune.data import Relabelled, inject_label_noise
from lightning_prune.scoring import StaticPruning, load_scores
from lightning_prune.testing.task import LIGHTNING_S_ADVICE, WeightedModel
from tests.helpers import BareModel, Model, PlainModel, make_loader, make_trainer

CLI = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy_problem(n=600, num_classes=5, rate=0.2, kind="symmetric", seed=0, sharpness=3.0):
    """Return probabilities of a sound model, noisy labels, and which are wrong."""
    true = torch.randint(0, num_classes, (n,), generator=generator(seed))
    noisy, wrong = inject_label_noise(true, kind, rate, num_classes, generator=generator(seed + 1))
    noise = torch.randn(n, num_classes, generator=generator(seed + 2))
    return (sharpness * F.one_hot(true, num_classes) + noise).softmax(1), noisy, wrong


def _reference_doubt(probs, targets):
    """The noisy channel by loops: five steps of expectation-maximisation, then the log-odds of the likeliest other."""
    n, num = probs.shape
    p = np.maximum(probs.numpy().astype(np.float64), 1e-3)
    channel = np.full((num, num), 0.3 / (num - 1))
    np.fill_diagonal(channel, 0.7)
    for _ in range(5):
        counts = np.full((num, num), 5 / num)
        for i in range(n):
            joint = [p[i, k] * channel[k, targets[i]] for k in range(num)]
            for k in range(num):
                counts[k, targets[i]] += joint[k] / sum(joint)
        channel = counts / counts.sum(1, keepdims=True)
    doubt = []
    for i in range(n):
        odds = [p[i, k] * channel[k, targets[i]] for k in range(num)]
        own = odds.pop(int(targets[i]))
        doubt.append(min(4.0, max(-4.0, math.log(max(odds) / own))))
    return torch.tensor(doubt)


def test_the_doubt_is_that_of_the_loop():
    probs, targets, _ = noisy_problem(150, 4)
    torch.testing.assert_close(
        label_doubt("multiclass", probs, targets), _reference_doubt(probs, targets), atol=1e-4, rtol=0
    )


def test_doubt_by_candidates_is_that_of_all_classes():
    """Whatever the order of the candidates; with fewer of them, nearly so."""
    probs, targets, wrong = noisy_problem(400, 6)
    full, given = label_doubt("multiclass", probs, targets), probs.gather(1, targets[:, None]).squeeze(1)
    for k, atol in ((6, 1e-4), (3, 0.8)):
        top = probs.topk(k)
        found = label_doubt("multiclass", top.values, targets, classes=top.indices.int(), given=given)
        torch.testing.assert_close(found, full, atol=atol, rtol=0)
        assert average_precision_score(wrong, found) == pytest.approx(average_precision_score(wrong, full), abs=0.01)


def test_many_classes_need_no_table_of_pairs():
    """A channel of 3,000 classes squared is not made; the wrong ones still come first."""
    n, num = 3000, 3000
    true = torch.randint(0, num, (n,), generator=generator())
    targets, wrong = inject_label_noise(true, "symmetric", 0.1, num, generator=generator(1))
    classes = torch.stack([true, (true + 1) % num, (true + 2) % num], 1)
    outputs = torch.tensor([0.8, 0.1, 0.05]).expand(n, 3)
    given = torch.where(wrong, 0.001, 0.8)
    doubt = label_doubt("multiclass", outputs, targets, classes=classes, given=given)
    assert doubt[wrong].min() > doubt[~wrong].max()


def test_one_label_of_two_classes_is_the_same_either_way():
    probs, targets, _ = noisy_problem(300, 2, sharpness=2.0)
    one = label_doubt("binary", probs[:, 1:], targets)
    torch.testing.assert_close(one, label_doubt("multiclass", probs, targets), atol=1e-4, rtol=0)
    assert torch.equal(label_doubt("multilabel", probs[:, 1:], targets[:, None])[:, 0], one)


def test_labels_of_a_sample_do_not_touch_each_other():
    first, second = noisy_problem(300, 2, seed=1, sharpness=2.0), noisy_problem(300, 2, rate=0.4, seed=5, sharpness=2.0)
    probs, labels = (torch.stack([a, b], 1) for a, b in ((first[0][:, 1], second[0][:, 1]), (first[1], second[1])))
    both = label_doubt("multilabel", probs, labels)
    for c in range(2):
        torch.testing.assert_close(both[:, c], label_doubt("binary", probs[:, c : c + 1], labels[:, c]))


def _reference_residual_doubt(predictions, targets):
    """By loops: normal around the prediction, with the spread of the neighbours' residuals, or around the mean."""
    n = len(targets)
    order, residual = np.argsort(predictions, kind="stable"), targets - predictions
    scale = np.empty(n)
    for ids in np.array_split(order, max(1, min(10, n // 30))):
        sizes = np.sort(np.abs(residual[ids]))
        scale[ids] = 1.4826 * max(sizes[(len(ids) - 1) // 2], 0.1 * np.sort(np.abs(residual))[(n - 1) // 2])
    spread = max(targets.std(), np.sort(scale)[(n - 1) // 2])
    odds = np.array([
        (0.5 * (residual[i] / scale[i]) ** 2 + math.log(scale[i]))
        - (0.5 * ((targets[i] - targets.mean()) / spread) ** 2 + math.log(spread))
        for i in range(n)
    ])  # fmt: skip
    share = 0.3
    for _ in range(5):
        share = np.mean([1 / (1 + (1 - share) / share * math.exp(-min(odd, 500))) for odd in odds])
        share = min(0.5, max(1 / (2 * n), share))
    odds = odds + math.log(share / (1 - share))
    return torch.tensor(odds / (1 + np.abs(odds) / 4)).float()


def test_a_doubted_number_is_one_of_another_sample():
    """Where predictions are less sure, targets are allowed to be farther away."""
    x = torch.randn(400, generator=generator()).sort().values
    scale = 0.5 * (x / 2).exp()
    y = 5 * x + scale * torch.randn(400, generator=generator(1))
    wrong = torch.zeros(400, dtype=torch.bool)
    wrong[torch.randperm(400, generator=generator(2))[:20]] = True
    y[wrong] = y[wrong] + 8 * scale[wrong]
    doubt = label_doubt("regression", 5 * x[:, None], y)
    torch.testing.assert_close(
        doubt, _reference_residual_doubt(5 * x.double().numpy(), y.double().numpy()), atol=2e-3, rtol=0
    )
    assert average_precision_score(wrong, doubt) > 0.9
    assert average_precision_score(wrong, doubt) > average_precision_score(wrong, (y - 5 * x).abs())
    table = label_issues(y, 5 * x[:, None], task="regression")
    assert table["given"].dtype == table["suggested"].dtype == torch.float32
    torch.testing.assert_close(table["residual"], table["given"] - table["suggested"])
    flagged = table["index"][: int((table["score"] > 0.5).sum())]
    assert int(wrong[flagged].sum()) >= 12
    assert len(flagged) <= 30


@pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
def test_wrong_labels_come_first(kind):
    probs, targets, wrong = noisy_problem(rate=0.2, kind=kind)
    table = label_issues(targets, probs)
    assert len({len(values) for values in table.values()}) == 1
    assert table["index"].sort().values.tolist() == list(range(600))
    assert {name: table[name].dtype for name in ("index", "given", "suggested", "score")} == {
        "index": torch.int64, "given": torch.int64, "suggested": torch.int64, "score": torch.float32}  # fmt: skip
    assert torch.equal(table["given"], targets[table["index"]])
    score = table["score"]
    assert torch.equal(score, score.sort(descending=True).values)
    assert score.min() >= 0
    assert score.max() <= 1
    assert (
        average_precision_score(wrong[table["index"]], score)
        > average_precision_score(wrong, 1 - probs[range(600), targets]) - 0.01
    )
    number = int((score > 0.5).sum())
    assert number == pytest.approx(int(wrong.sum()), rel=0.25)
    flagged = table["index"][:number]
    assert (table["suggested"][:number] != table["given"][:number]).all()
    assert wrong[flagged].double().mean() > 0.8
    assert (table["suggested"][:number] == probs.argmax(1)[flagged]).double().mean() > 0.9


def test_a_class_that_becomes_another_is_known():
    """With 40 % of each class turned into the next, the channel finds more of them than the probabilities alone."""
    probs, targets, wrong = noisy_problem(2000, 5, 0.4, "pairflip", sharpness=2.0)
    noisy_view = 0.6 * probs + 0.4 * probs.roll(1, dims=1)  # what a model learns from such labels
    own = noisy_view.gather(1, targets[:, None]).squeeze(1)
    by_channel = average_precision_score(wrong, label_doubt("multiclass", noisy_view, targets))
    assert by_channel > average_precision_score(wrong, 1 - own) + 0.03


def test_a_hard_class_is_not_called_wrong():
    """Two classes that look alike, all labels right; three easy ones, a tenth wrong."""
    n = 1500
    true = torch.arange(n) % 5
    logits = 4.0 * F.one_hot(true, 5).float() + torch.randn(n, 5, generator=generator())
    hard = true < 2
    logits[hard] -= 2.8 * F.one_hot(true, 5)[hard]  # 1.2 ahead, of two that are both ahead
    logits[hard, :2] += 3
    targets, wrong = true.clone(), torch.zeros(n, dtype=torch.bool)
    easy = (~hard).nonzero().squeeze(1)
    chosen = easy[torch.randperm(len(easy), generator=generator(1))[:90]]
    targets[chosen], wrong[chosen] = 2 + (true[chosen] - 2 + 1) % 3, True
    probs = logits.softmax(1)
    table = label_issues(targets, probs)
    first = table["index"][:90]
    assert hard[first].sum() <= 9
    by_loss = (1 - probs.gather(1, targets[:, None]).squeeze(1)).argsort(descending=True)
    assert probs.argmax(1)[hard].ne(true[hard]).double().mean() > 0.15  # it is really hard
    assert wrong[first].sum() >= wrong[by_loss[:90]].sum()


def test_right_labels_of_an_easy_task_stay():
    probs, _, _ = noisy_problem(600, 5, 0.0, sharpness=6.0)
    targets = probs.argmax(1)
    assert not (label_issues(targets, probs)["score"] > 0.5).any()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples(n):
    table = label_issues(torch.zeros(n, dtype=torch.int64), torch.full((n, 2), 0.5))
    assert table["index"].tolist() == list(range(n))
    assert not (table["score"] > 0.5).any()


def test_samples_never_trained_are_in_the_table():
    probs, targets, _ = noisy_problem(50)
    probs[7] = torch.nan
    table = label_issues(targets, probs)
    row = int((table["index"] == 7).nonzero())
    assert table["score"][row] < 0.5
    assert table["suggested"][row] == table["given"][row]
    assert table["score"].isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": [0, 1]}, TypeError, "Expected `targets` to be a tensor"),
        ({"targets": torch.tensor([0.0, 1.0])}, ValueError, "class ids of an integer dtype"),
        ({"targets": torch.tensor([0, 2])}, ValueError, r"class ids in \[0, 2\), but 1 are not, such as 2"),
        ({"targets": torch.tensor([0])}, ValueError, r"for the same n >= 1 samples"),
        ({"outputs": torch.zeros(2, 1)}, ValueError, r"for the same n >= 1 samples"),
        ({"task": "ranking"}, ValueError, "Expected `task` to be one of"),
        ({"classes": torch.zeros(2, 2)}, ValueError, "together with `given`"),
        ({"task": "binary", "outputs": torch.zeros(2, 1), "targets": torch.tensor([0, 3])}, ValueError, "to be 0 or 1"),
    ],
)
def test_bad_input_of_the_rule(change, error, message):
    arguments = {"targets": torch.tensor([0, 1]), "outputs": torch.full((2, 2), 0.5), **change}
    with pytest.raises(error, match=message):
        label_issues(**arguments)


def epochs_of(true, targets, num_epochs=12, seed=0):
    """Return logits ``(E, n, C)`` of a model that learns from epoch to epoch, and is unsure of everything at first."""
    n, num = len(true), int(true.max()) + 1
    noise = torch.randn(num_epochs, n, num, generator=generator(seed))
    skill = torch.linspace(0.3, 5, num_epochs)[:, None, None]
    return skill * F.one_hot(true, num) + 0.3 * skill * F.one_hot(targets, num) + noise


def folded(logits, targets, seen=None, task="multiclass"):
    """Fold epochs into an evidence; ``seen`` ``(E, n)`` says who was trained."""
    n = len(targets)
    evidence = LabelEvidence(n, task)
    for epoch, values in enumerate(logits):
        ids = torch.arange(n) if seen is None else seen[epoch].nonzero().squeeze(1)
        rows = read_rows(task, ids, torch.zeros(len(ids)), values[ids], targets[ids])
        evidence.fold({**rows, "place": torch.arange(len(ids))})
    return evidence


def test_evidence_is_the_weighted_mean_of_the_epochs():
    true = torch.arange(60) % 3
    targets, _ = inject_label_noise(true, "symmetric", 0.2, 3, generator=generator())
    logits = epochs_of(true, targets, 4)
    columns = folded(logits, targets).columns()
    doubts, weights, spreads = [], [], []
    for values in logits:
        probs = values.softmax(1)
        doubts.append(label_doubt("multiclass", probs, targets).double())
        shares = torch.bincount(targets).double() / 60
        skill = 1 - (probs - F.one_hot(targets, 3)).square().sum(1).mean().double() / (1 - shares.square().sum())
        weights.append(float(skill.clamp(0.02, 1) ** 1.5))
        spreads.append(float(doubts[-1].std(correction=0)))
    total, scale = sum(weights), sum(w * s for w, s in zip(weights, spreads, strict=True))
    level = sum(w * float(d.mean()) for w, d in zip(weights, doubts, strict=True)) / total
    above = sum(w * (d - d.mean()) for w, d in zip(weights, doubts, strict=True))
    expected = level + scale / total * above / (scale + 0.3 * scale / 4)
    torch.testing.assert_close(columns["doubt"].double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(columns["outputs"], logits.softmax(2).mean(0), atol=1e-5, rtol=0)
    assert columns["visits"].tolist() == [4] * 60


@pytest.mark.parametrize("which", ["early", "late", "random"])
def test_samples_trained_three_times_are_comparable_with_those_trained_always(which):
    """As many of them are called wrong as of the others, up to chance; by their mean losses they are another group."""
    n, epochs = 2000, 12
    true = torch.randint(0, 4, (n,), generator=generator(3))
    targets, wrong = inject_label_noise(true, "symmetric", 0.1, 4, generator=generator(4))
    logits = epochs_of(true, targets, epochs)
    rare = torch.rand(n, generator=generator(5)) < 0.5
    epoch = (
        torch.rand(epochs, n, generator=generator(6)).argsort(0) if which == "random" else torch.arange(epochs)[:, None]
    )
    first = {"early": epoch < 3, "late": epoch >= epochs - 3, "random": epoch < 3}[which]
    seen = ~rare | first.expand(epochs, n)
    columns = folded(logits, targets, seen).columns()
    assert columns["visits"][rare].unique().tolist() == [3]
    doubt, number = columns["doubt"], int(wrong.sum())
    called = torch.zeros(n, dtype=torch.bool)
    called[doubt.argsort(descending=True)[:number]] = True
    assert abs(called[rare].double().mean() - called[~rare].double().mean()) < 0.05  # about 0.1 each
    losses = torch.stack([F.cross_entropy(values, targets, reduction="none") for values in logits])
    mean_loss = (losses * seen).sum(0) / seen.sum(0)

    def shift(values):
        return abs(values[rare].median() - values[~rare].median()) / values.std()

    assert shift(doubt) < 0.35
    if which != "random":
        assert shift(mean_loss) > shift(doubt) + 0.3
    assert average_precision_score(wrong, doubt) > average_precision_score(wrong, mean_loss) - 0.01
    assert average_precision_score(wrong[~rare], doubt[~rare]) > 0.99


def test_highest_classes_are_kept_exactly():
    """With more than 32 classes: those that are always among the highest have their exact sums."""
    n, num = 30, 50
    base = torch.randn(n, num, generator=generator())
    base[:, :4] += 6
    logits = base + 0.1 * torch.randn(5, n, num, generator=generator(1))
    targets = torch.arange(n) % num
    columns = folded(logits, targets).columns()
    assert columns["outputs"].shape == columns["classes"].shape == (n, 8)
    probs = logits.softmax(2).mean(0)
    torch.testing.assert_close(columns["given"], probs[range(n), targets], atol=1e-6, rtol=1e-5)
    for sample in range(n):
        kept = dict(zip(columns["classes"][sample].tolist(), columns["outputs"][sample].tolist(), strict=True))
        for c in range(4):
            assert kept[c] == pytest.approx(float(probs[sample, c]), rel=1e-5)
    assert torch.equal(label_issues(**columns)["given"].sort().values, targets.sort().values)


@pytest.mark.parametrize(
    ("task", "num_classes", "expected"),
    [("multiclass", 10, 28 + 40), ("multiclass", 100, 96), ("multilabel", 5, 8 + 17 * 5), ("regression", 1, 28)],
)
def test_memory_is_what_is_said(task, num_classes, expected):
    """And does not grow with the epochs."""
    targets = {"multilabel": torch.ones(20, num_classes).long(), "regression": torch.randn(20)}.get(
        task, torch.arange(20) % num_classes
    )
    for epochs in (1, 4):
        evidence = folded(torch.randn(epochs, 20, num_classes), targets, task=task)
        assert sum(values.nbytes for values in evidence.state.values()) == expected * 20


def test_padded_and_unlabelled_rows_do_not_count():
    targets = torch.tensor([0, 1, -100, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    rows = read_rows("multiclass", torch.tensor([0, 1, 2, 1]), torch.zeros(4), logits, targets)
    evidence = LabelEvidence(4, "multiclass")
    evidence.fold({**rows, "place": torch.arange(4)})
    assert evidence.left_out == 1
    columns = evidence.columns()
    assert columns["visits"].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(columns["outputs"][1], logits[1].softmax(0))  # the first of the two


class Noisy(WeightedModel):
    """Learns labels that are partly wrong."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def weighted_loss(self, losses, **kwargs):
        self.noted.append((self.current_epoch, kwargs["logits"].detach(), kwargs["targets"]))
        return super().weighted_loss(losses, **kwargs)


def noisy_loader(n=200, batch_size=20):
    x = torch.randn(n, 8, generator=generator())
    true = (x[:, 0] > 0).long()
    x[:, 0] += 2 * x[:, 0].sign()
    targets, wrong = inject_label_noise(true, "symmetric", 0.1, 2, generator=generator(1))
    dataset = TensorDataset(x, targets, torch.arange(n))
    return DataLoader(dataset, batch_size, shuffle=True), wrong


def fit(issues, *callbacks, model=None, loader=None, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    model = model or Model()
    trainer = make_trainer(*callbacks, issues, **kwargs)
    trainer.fit(model, loader or make_loader(), ckpt_path=ckpt_path)
    return model


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", [None, InfoBatch(), RandomPruning(0.5), OrderDP(0.8, 0.8)], ids=repr)
def test_a_run_finds_its_wrong_labels(method):
    loader, wrong = noisy_loader()
    issues = LabelIssues()
    fit(issues, *([] if method is None else [method]), model=Noisy(), loader=loader, max_epochs=12)
    table = issues.issues()
    assert average_precision_score(wrong[table["index"]], table["score"]) > 0.85
    assert issues.num_issues == int((table["score"] > 0.5).sum())
    assert 10 <= issues.num_issues <= 30
    assert {"given_prob", "margin", "loss", "epochs"} <= table.keys()
    assert (table["epochs"].min() < 12) == (method is not None)
    assert set(issues.suggestions()) == set(table["index"][: issues.num_issues].tolist())


def test_columns_are_those_of_the_steps():
    model = Noisy()
    issues = LabelIssues()
    fit(issues, model=model, max_epochs=3)
    evidence = LabelEvidence(40, "multiclass")
    for epoch in range(3):
        steps = [(logits, targets) for e, logits, targets in model.noted if e == epoch]
        logits, targets = (torch.cat(values) for values in zip(*steps, strict=True))
        losses = F.cross_entropy(logits, targets, reduction="none")
        rows = read_rows("multiclass", torch.tensor(model.epoch_ids(epoch)), losses, logits, targets)
        evidence.fold({**rows, "place": torch.arange(40)})
    assert same(issues.issues(), label_issues(**evidence.columns()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_the_default_dtype_changes_nothing(dtype, task):
    targets = {"multiclass": torch.arange(20) % 5, "multilabel": torch.ones(20, 5).long()}.get(task, torch.arange(20.0))
    logits = torch.randn(3, 20, 1 if task == "regression" else 5, generator=generator())
    expected = label_issues(**folded(logits, targets, task=task).columns(), task=task)
    torch.set_default_dtype(dtype)
    try:
        found = label_issues(**folded(logits, targets, task=task).columns(), task=task)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(expected, found)


def test_training_is_not_changed():
    with_issues, without = fit(LabelIssues(), InfoBatch(seed=1)), fit(ScoreRegistry(), InfoBatch(seed=1))
    assert with_issues.seen == without.seen
    assert torch.equal(with_issues.layer.weight, without.layer.weight)


def test_a_second_fit_starts_afresh():
    issues = LabelIssues()
    fit(issues)
    first = issues.issues()
    fit(issues)
    assert same(first, issues.issues())


RESUMED = pytest.mark.filterwarnings(*LIGHTNING_S_ADVICE)


@RESUMED
@pytest.mark.parametrize("step", [10, 20, 25], ids=["in an epoch", "on its last batch", "in a later one"])
def test_a_resumed_run_finds_the_same(step, tmp_path):
    """The checkpoint is loaded with ``weights_only=True``, which refuses anything but tensors and plain values."""
    whole, resumed = LabelIssues(), LabelIssues()
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, InfoBatch(seed=3), saving, enable_checkpointing=True)
    path = tmp_path / f"step={step}.ckpt"
    torch.load(path, weights_only=True)
    fit(resumed, InfoBatch(seed=3), ckpt_path=path)
    assert same(whole.issues(), resumed.issues())


@RESUMED
def test_a_run_resumed_at_an_epochs_end_finds_the_same(tmp_path):
    whole, resumed = LabelIssues(), LabelIssues()
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(whole, InfoBatch(seed=3), saving, enable_checkpointing=True)
    fit(resumed, InfoBatch(seed=3), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(whole.issues(), resumed.issues())


@pytest.mark.filterwarnings("ignore:The training dataset has grown")
def test_samples_that_are_appended_are_in_the_table():
    class Growing(Model):
        def train_dataloader(self):
            return make_loader(40 if self.current_epoch < 2 else 60)

    issues = LabelIssues()
    make_trainer(issues, reload_dataloaders_every_n_epochs=1).fit(Growing())
    table = issues.issues()
    assert sorted(table["index"].tolist()) == list(range(60))
    assert table["epochs"][table["index"] < 40].unique().tolist() == [4]
    assert table["epochs"][table["index"] >= 40].unique().tolist() == [2]


class OtherLabels(WeightedModel):
    """Hands on labels of another kind."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def training_step(self, batch, batch_idx):
        x, y, _index = batch
        both = torch.stack([y, 1 - y], 1)
        logits = self.layer(x)
        targets, logits = {
            "multilabel": (both.float(), logits),
            "binary": (y.float(), logits[:, 0]),
            "regression": (x[:, 0], logits[:, :1]),
            "soft": (logits.softmax(1), logits),
            "floats": (y.float(), logits),
            "tokens": (both, logits[:, :, None]),
        }[self.kind]
        losses = F.cross_entropy(self.layer(x), y, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=targets)


def test_labels_of_several_classes_have_a_row_each():
    issues = LabelIssues()
    fit(issues, InfoBatch(), model=OtherLabels("multilabel"))
    table = issues.issues()
    pairs = sorted(zip(table["index"].tolist(), table["class"].tolist(), strict=True))
    assert pairs == [(i, c) for i in range(40) for c in range(2)]
    targets = make_loader().dataset.tensors[1]
    assert torch.equal(
        table["given"], torch.where(table["class"] == 0, targets[table["index"]], 1 - targets[table["index"]])
    )
    with pytest.raises(ValueError, match="the task is multi-label"):
        issues.suggestions()


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_one_output(kind):
    issues = LabelIssues()
    fit(issues, model=OtherLabels(kind))
    table = issues.issues()
    x, y, _ = make_loader().dataset.tensors
    assert torch.equal(table["given"], (y if kind == "binary" else x[:, 0])[table["index"]])
    assert "class" not in table


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (
            BareModel(),
            "auto",
            r"Expected `logits` and `targets` for LabelIssues, but got None. Write `self.weighted_loss",
        ),
        (OtherLabels("soft"), "auto", "have no one class to doubt"),
        (OtherLabels("floats"), "auto", r"class ids \(B,\) of an integer dtype"),
        (OtherLabels("floats"), "multiclass", r"class ids of an integer dtype.*Pass `targets.long\(\)`"),
        (OtherLabels("tokens"), "auto", "Labels of tokens or pixels"),
        (Model(), "regression", r"Expected `logits` \(4, 1\) and `targets` \(4,\) of a regression task"),
    ],
)
def test_labels_that_cannot_be_looked_into(model, task, message):
    with pytest.raises(ValueError, match=message):
        fit(LabelIssues(task), model=model)


def test_what_cannot_work_is_refused_early(tmp_path):
    with pytest.raises(ValueError, match="Expected `task` to be one of"):
        LabelIssues("ranking")
    with pytest.raises(ValueError, match="that ends in"):
        LabelIssues(save_to="issues.txt")
    with pytest.raises(RuntimeError, match="Expected an epoch with recorded labels"):
        LabelIssues().issues()
    with pytest.raises(MisconfigurationException, match=r"class PlainModel\(WeightedLossMixin, LightningModule\)"):
        fit(LabelIssues(), model=PlainModel())
    (tmp_path / "file").touch()
    model = Model()
    with pytest.raises(OSError, match="Expected to be able to write .*but got"):
        fit(LabelIssues(save_to=tmp_path / "file" / "issues.csv"), model=model)
    assert model.seen == []
    with pytest.raises(TypeError, match=r"Expected a pruning method.*LabelIssues"):
        Pruner(LabelIssues(), max_epochs=1)


def test_labels_that_are_no_class_are_left_out_with_a_warning():
    loader = make_loader()
    loader.dataset.tensors[1][5] = -100

    class Ignoring(WeightedModel):
        def losses(self, batch):
            x, y, _index = batch
            self.outputs = {"logits": self.layer(x), "targets": y}
            return F.cross_entropy(self.layer(x), y, reduction="none")

    issues = LabelIssues()
    with pytest.warns(UserWarning, match="1 of 40 samples of an epoch are left out by LabelIssues"):
        fit(issues, model=Ignoring(), loader=loader)
    table = issues.issues()
    assert table["epochs"][table["index"] == 5].tolist() == [0]


def test_a_step_reads_nothing(monkeypatch):
    """No value of a tensor is read between the epochs' ends, after the first step has told the kind of labels."""
    issues = LabelIssues("multiclass")
    inside = []
    real = LabelIssues.on_train_batch_end

    def watched(self, *args):
        inside.append(1)
        real(self, *args)
        inside.pop()

    monkeypatch.setattr(LabelIssues, "on_train_batch_end", watched)
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        method = getattr(torch.Tensor, name)

        def guarded(tensor, *args, method=method, name=name, **kwargs):
            assert not inside, f"Tensor.{name} was called in a step"
            return method(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, guarded)
    fit(issues, loader=make_loader(batch_size=1), max_epochs=2)
    assert issues.evidence.state["visits"].tolist() == [2] * 40


@pytest.fixture(scope="module")
def found():
    issues = LabelIssues()
    loader, _ = noisy_loader()
    fit(issues, InfoBatch(), model=Noisy(), loader=loader, max_epochs=6)
    return issues


def test_files(found, tmp_path):
    table = found.issues()
    found.dataset.samples = [(f"images/{i}.png", 0) for i in range(200)]
    try:
        found.save(tmp_path / "issues.csv")
        found.save(tmp_path / "issues.parquet")
    finally:
        del found.dataset.samples
    with open(tmp_path / "issues.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == table["index"].tolist()
    assert rows[0]["name"] == f"images/{table['index'][0]}.png"
    assert [float(row["score"]) for row in rows] == pytest.approx(table["score"].tolist(), rel=1e-5)
    import pyarrow.parquet as pq

    read = pq.read_table(tmp_path / "issues.parquet")
    assert read.column_names == ["index", "name", *(name for name in table if name != "index")]
    assert read["suggested"].to_pylist() == table["suggested"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["issues.csv", "issues.parquet"]


def test_wrong_labels_are_dropped_by_static_pruning(found, tmp_path):
    """From the saved file, or by their ids."""
    path = found.save(tmp_path / "issues.npz")
    ratio = load_scores(path).meta["parameters"]["prune_ratio"]
    assert ratio == found.num_issues / 200
    dropped = set(found.issues()["index"][: found.num_issues].tolist())
    scores = torch.ones(200)
    scores[list(dropped)] = 0
    for source in (path, scores):
        model = Model()
        fit(StaticPruning(source, prune_ratio=ratio), model=model, loader=noisy_loader()[0], max_epochs=1)
        assert set(model.epoch_ids(0)) == set(range(200)) - dropped


def test_corrected_labels(found):
    dataset, suggestions = noisy_loader()[0].dataset, found.suggestions()
    fixed = Relabelled(dataset, suggestions)
    wrong = noisy_loader()[1]
    true = torch.where(wrong, 1 - dataset.tensors[1], dataset.tensors[1])
    labels = torch.stack([fixed[i][1] for i in range(len(fixed))])
    assert (labels == true).double().mean() > (dataset.tensors[1] == true).double().mean() + 0.05
    model = Model()
    make_trainer(InfoBatch(), max_epochs=1).fit(model, DataLoader(fixed, 20, shuffle=True))
    assert sorted(model.epoch_ids(0)) == list(range(200))


def test_relabelled_samples_of_any_kind():
    class Dicts(torch.utils.data.Dataset):
        classes, targets = ("cat", "dog"), [0, 1, 0]

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"image": i, "label": self.targets[i]}

    fixed = Relabelled(Dicts(), {1: 0}, "label")
    assert [fixed[i]["label"] for i in range(3)] == [0, 0, 0]
    assert fixed[-2]["label"] == 0
    assert fixed.classes == ("cat", "dog")
    assert fixed.targets == [0, 0, 0]
    assert Dicts.targets == [0, 1, 0]
    with pytest.raises(IndexError, match=r"sample ids in \[0, 3\), but got \[3\]"):
        Relabelled(Dicts(), {3: 0})
    with pytest.raises(TypeError, match="mapping from sample id to label, but got list"):
        Relabelled(Dicts(), [0, 1])


def test_names_of_samples():
    dataset = TensorDataset(torch.zeros(3))
    assert sample_names(dataset) is None
    assert sample_names(dataset, ["a", "b", "c"]) == ["a", "b", "c"]
    assert sample_names(dataset, "page {}".format) == ["page 0", "page 1", "page 2"]
    dataset.imgs = [("x/0.png", 1), ("x/1.png", 0), ("y/2.png", 1)]
    assert sample_names(Subset(dataset, [2, 0])) == ["y/2.png", "x/0.png"]
    with pytest.raises(ValueError, match="one for each of 3 samples, but got 2"):
        sample_names(dataset, ["a", "b"])


def test_the_summary(found):
    text = summarize_issues(found.issues(), classes=["cat", "dog"], names=[f"{i}.png" for i in range(200)], top=3)
    lines = text.splitlines()
    first = found.issues()["index"][0]
    assert lines[0].split() == ["index", "given", "suggested", "score", "name"]
    assert lines[1].split()[0] == str(int(first))
    assert {"cat", "dog"} == set(lines[1].split()[1:3])
    assert lines[1].endswith(f"{first}.png")
    assert "####" in text
    assert lines[-1].startswith(f"About {found.num_issues} of 200 labels are wrong (")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
               "logger": False, "enable_checkpointing": False, "callbacks": [{"class_path": "InfoBatch"}]}  # fmt: skip
    content = {"seed_everything": 0, "trainer": trainer, "model": {"class_path": "tests.helpers.ModelWithData"}}

    def write(**changes):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**content, "trainer": {**trainer, **changes}}))
        return "config.yaml"

    return write


@CLI
def test_the_command(config, tmp_path, capsys):
    """With the callback named by its short name or added, the same."""
    main(["find-label-issues", "--config", config(), "--output", "out/issues.csv"])
    out = capsys.readouterr().out
    assert "About" in out
    assert "####" in out
    assert out.rstrip().endswith("Written to out/issues.csv")
    assert len(out[out.index("index ") :].split("\n\n")[0].splitlines()) == 21
    assert len((tmp_path / "out/issues.csv").read_text().splitlines()) == 41
    named = [{"class_path": "InfoBatch"}, {"class_path": "LabelIssues", "init_args": {"save_to": "own.csv"}}]
    main(["find-label-issues", "--config", config(callbacks=named), "--output", "again.csv"])
    assert len({(tmp_path / name).read_text() for name in ("out/issues.csv", "again.csv", "own.csv")}) == 1


@CLI
def test_a_table_that_is_there_is_kept_unless_said(config, tmp_path, capsys, monkeypatch):
    """Someone may have written into it."""
    (tmp_path / "issues.csv").write_text("looked at\n")
    written = config()
    with monkeypatch.context() as context:
        context.setattr(WeightedModel, "training_step", None)
        with pytest.raises(SystemExit) as error:
            main(["find-label-issues", "--config", written, "--output", "issues.csv"])
    assert error.value.code == 2
    assert "Expected `output` to name a new file, but 'issues.csv' is there already" in capsys.readouterr().err
    assert (tmp_path / "issues.csv").read_text() == "looked at\n"
    main(["find-label-issues", "--config", written, "--output", "issues.csv", "--overwrite=true"])
    assert len((tmp_path / "issues.csv").read_text().splitlines()) == 41


@CLI
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("issues.txt", "that ends in"),
        ("config.yaml/issues.csv", "Expected to be able to write"),
        (".csv/", "that ends in"),
    ],
)
def test_what_cannot_be_written_is_refused_before_training(output, message, config, capsys, monkeypatch):
    monkeypatch.setattr(WeightedModel, "training_step", None)
    with pytest.raises(SystemExit) as error:
        main(["find-label-issues", "--config", config(), "--output", output])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_columns_in_another_order_than_written(tmp_path):
    """A table of few labels, by all suffixes; and a wrong one is refused before anything is written."""
    table = label_issues(torch.tensor([0, 1, 1]), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]))
    assert load_scores(save_issues(table, tmp_path / "a.npz")).scores.argmax() == 2
    with pytest.raises(ValueError, match="that ends in"):
        save_issues(table, tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
