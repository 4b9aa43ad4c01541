"""Train with the Trainer, score the trained module in one pass, write the file, prune another run by it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.core.plan import num_keep
from lightning_prune.core.rng import make_generator
from lightning_prune.scoring import (
    Features,
    StaticPruning,
    collect_features,
    contextual_diversity,
    craig,
    dataset_pruning,
    deepfool,
    double_end_scores,
    glister,
    herding,
    influence,
    influence_vectors,
    kcenter,
    load_scores,
    moderate_distance,
    moso,
    proxy_margins,
    prune4rel,
    pseudo_labels,
    score_features,
    score_module,
    select_middle,
    select_top,
    spherical_kmeans,
    ssp_score,
)
from lightning_prune.scoring.features.feature_scores import FEATURE_METHODS, ONE_VISIT
from lightning_prune.scoring.trackers.el2n import error_norm
from lightning_prune.scoring.trackers.grand import last_layer_grad_norm
from tests.helpers import Model, PlainModel, make_loader, make_trainer
from tests.scoring.helpers import ScoredModel, seeded_model

N = 40


@pytest.fixture(scope="module")
def trained():
    model = seeded_model()
    make_trainer(max_epochs=2).fit(model, make_loader())
    model.forward = lambda x: model.layer(x)
    return model


@pytest.fixture(scope="module")
def shown(trained):
    return collect_features(trained, make_loader(), progress=False)


def ids_by_hand(method, shown, k):
    """The pure rule called by hand."""
    probs, grads, generator = shown.probs, shown.output_grads, make_generator(0, 0, method)
    return {
        "ContextualDiversity": lambda: contextual_diversity(probs, k, generator=generator),
        "CRAIG": lambda: craig(grads, shown.features, shown.targets, k / N).indices,
        "DP": lambda: kept_by_dp(shown, k),
        "GLISTER": lambda: glister(shown.logits, shown.features, shown.targets, k),
        "Herding": lambda: herding(shown.features, k),
        "KCenter": lambda: kcenter(shown.features, k, generator=generator),
        "Prune4ReL": lambda: prune4rel(probs, shown.features, k),
    }[method]()


def kept_by_dp(shown, k):
    generator = make_generator(0, 0, "DP")
    vectors = influence_vectors(shown.logits, shown.features, shown.targets, generator=generator)
    pruned = dataset_pruning(vectors, N - k, generator=generator)
    return torch.tensor(sorted(set(range(N)) - set(pruned.tolist())))


def elfs_by_hand(shown):
    generator = make_generator(0, 0, "ELFS")
    labels = pseudo_labels(shown.features, 2, generator=generator)
    return double_end_scores(proxy_margins(shown.features, labels, generator=generator), 0.6 / 3)


def scores_by_hand(method, shown, model):
    losses = F.cross_entropy(shown.logits, shown.targets, reduction="none")
    top = shown.probs.sort(1, descending=True).values
    return {
        "DeepFool": lambda: deepfool(model, make_loader().dataset.tensors[0]),
        "ELFS": lambda: elfs_by_hand(shown),
        "MoSo": lambda: moso(shown.logits, shown.features, shown.targets),
        "Influence": lambda: influence(shown.logits, shown.features, shown.targets),
        "Moderate": lambda: moderate_distance(shown.features, shown.targets),
        "SSP": lambda: ssp_score(
            shown.features, spherical_kmeans(shown.features, 2, generator=make_generator(0, 0, "SSP"))
        ),
        "EL2N": lambda: error_norm(shown.probs, shown.targets),
        "Entropy": lambda: -(shown.probs * shown.probs.log()).sum(1),
        "GraNd": lambda: last_layer_grad_norm(shown.probs, shown.targets, shown.features),
        "LeastConfidence": lambda: top[:, 0],
        "Margin": lambda: top[:, 0] - top[:, 1],
        "SmallLoss": lambda: losses,
    }[method]()


CHOOSING = ("ContextualDiversity", "CRAIG", "DP", "GLISTER", "Herding", "KCenter", "Prune4ReL")
KEEPS = {"DeepFool": "low", "LeastConfidence": "low", "Margin": "low", "SmallLoss": "low", "Moderate": "middle"}


def trained_ids(callback, model=None):
    torch.manual_seed(9)
    model = model or Model()
    make_trainer(callback, max_epochs=2).fit(model, make_loader())
    epochs = [sorted(model.epoch_ids(epoch)) for epoch in (0, 1)]
    assert epochs[0] == epochs[1]
    return epochs[0]


@pytest.mark.parametrize("method", [*FEATURE_METHODS, *ONE_VISIT])
def test_train_score_prune(tmp_path, trained, shown, method):
    path = score_module(method, trained, make_loader(), prune_ratio=0.6, progress=False).save(tmp_path / "scores")
    file = load_scores(path, N)
    assert file.meta["method"] == method
    assert torch.equal(file.columns["targets"], make_loader().dataset.tensors[1])
    kept = trained_ids(StaticPruning(path, 0.6))
    if method in CHOOSING:
        assert file.keep == "high"
        assert kept == sorted(ids_by_hand(method, shown, 16).tolist())
        return
    expected = scores_by_hand(method, shown, trained)
    torch.testing.assert_close(file.scores, expected, rtol=1e-5, atol=1e-6)
    assert file.keep == KEEPS.get(method, "high")
    top = select_middle(file.scores, 0.4) if file.keep == "middle" else select_top(file.scores, 16, file.keep)
    assert kept == top.tolist()


@pytest.mark.parametrize("method", [m for m in CHOOSING if m != "CRAIG"])
def test_more_pruning_keeps_what_was_chosen_first(shown, method):
    file = score_features(method, shown, prune_ratio=0.6)
    if method in ("Herding", "KCenter", "Prune4ReL"):  # whose choices do not depend on how many follow
        assert set(StaticPruning(file, 0.8).choose(N).indices.tolist()) == set(ids_by_hand(method, shown, 8).tolist())
    with pytest.raises(ValueError, match=f"k <= 16 samples, which {method} chose, but got 20. Score again"):
        StaticPruning(file, 0.5).choose(N)
    with pytest.raises(ValueError, match="others were selected too"):
        StaticPruning(file, 0.6, "middle").choose(N)


def test_a_validation_set_is_for_those_that_look_at_one(trained, shown):
    held_out = collect_features(trained, make_loader(8), progress=False)
    given = {f"val_{name}": getattr(held_out, name) for name in ("logits", "features", "targets")}
    file = score_module(
        "GLISTER", trained, make_loader(), val_dataloader=make_loader(8), prune_ratio=0.6, progress=False
    )
    chosen = glister(shown.logits, shown.features, shown.targets, 16, **given)
    assert file.scores.topk(16).indices.tolist() == chosen.tolist()
    assert file.meta["parameters"]["validation_samples"] == 8
    with pytest.raises(ValueError, match="no validation set for 'SSP', which .* GLISTER and Influence take one"):
        score_features("SSP", shown, validation=held_out)
    with pytest.raises(ValueError, match="no validation set for 'DeepFool'"):
        score_module("DeepFool", trained, make_loader(), val_dataloader=make_loader(8))
    with pytest.raises(ValueError, match="with kind='norm', which uses no validation set"):
        score_features("Influence", shown, validation=held_out)


class Weighted(ScoredModel):
    """Notes the weights that its losses get."""

    def weighted_loss(self, losses, **kwargs):
        step = self._pruning_step
        self.steps[-1][1]["weights"] = None if step is None or step.weights is None else step.weights.clone()
        return super().weighted_loss(losses, **kwargs)


def noted_weights(model):
    return [
        {
            int(i): float(w)
            for e, s in model.steps
            if e == epoch
            for i, w in zip(s["indices"], s["weights"], strict=True)
        }
        for epoch in (0, 1)
    ]


def test_craig_weights_the_losses(tmp_path, shown):
    chosen = craig(shown.output_grads, shown.features, shown.targets, 0.4)
    path = score_features("CRAIG", shown, prune_ratio=0.6).save(tmp_path / "craig")
    model = Weighted()
    callback = StaticPruning(path, 0.6)
    assert callback.weighs_losses
    make_trainer(callback, max_epochs=2).fit(model, make_loader())
    expected = dict(zip(chosen.indices.tolist(), (chosen.weights * 16 / N).tolist(), strict=True))
    assert sum(expected.values()) == pytest.approx(16)
    for weights in noted_weights(model):
        assert weights == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_craig_weights_are_resumed_without_the_file(tmp_path, shown):
    path = score_features("CRAIG", shown, prune_ratio=0.6).save(tmp_path / "craig")

    def run(folder, ckpt_path=None):
        torch.manual_seed(9)
        checkpoint = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        model = Weighted()
        trainer = make_trainer(StaticPruning(path, 0.6), checkpoint, max_epochs=2, enable_checkpointing=True)
        trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
        return model

    whole = run("whole")
    path.unlink()
    resumed = run("resumed", tmp_path / "whole" / "step=4.ckpt")
    assert noted_weights(resumed)[1] == noted_weights(whole)[1]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_weights_belong_to_one_ratio(shown):
    file = score_features("CRAIG", shown, prune_ratio=0.6)
    for ratio in (0.5, 0.7):
        with pytest.raises(ValueError, match=r"keep k = 16 samples, which CRAIG chose.*`prune_ratio` of this run"):
            StaticPruning(file, ratio).choose(N)


def test_who_weighs_losses(tmp_path):
    scores = torch.rand(N)
    assert not StaticPruning(scores).weighs_losses
    assert not StaticPruning(tmp_path / "not yet.npz").weighs_losses
    assert not StaticPruning(scores).ranks_by_scores


def test_one_pass_serves_several_methods(shown):
    assert {score_features(m, shown).meta["method"] for m in ("KCenter", "EL2N", "Moderate")} == {
        "KCenter",
        "EL2N",
        "Moderate",
    }


def test_embeddings_of_another_model():
    embeddings = Features(features=torch.randn(N, 3, generator=torch.Generator().manual_seed(0)))
    file = score_features("SSP", embeddings, num_clusters=4)
    assert file.scores.shape == (N,)
    assert "targets" not in file.columns
    with pytest.raises(ValueError, match="Expected `targets` of each sample"):
        score_features("SSP", embeddings)


def test_the_file_tells_how_it_was_made(shown):
    file = score_features("Prune4ReL", shown, prune_ratio=0.5, seed=3, threshold=0.9)
    assert file.meta["parameters"] == {"threshold": 0.9, "seed": 3, "prune_ratio": 0.5}
    assert file.num_ranked == num_keep(N, 0.5)
    assert score_features("EL2N", shown).meta["parameters"] == {"num_epochs": 10}


def test_draws_depend_on_the_seed(shown):
    first, again, other = (score_features("KCenter", shown, seed=seed).scores for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_features_that_no_linear_layer_takes():
    module = nn.Sequential(nn.Linear(8, 9), nn.Softmax(1), nn.Unflatten(1, (3, 3)), nn.Flatten(), nn.AvgPool1d(3))
    loader = DataLoader(TensorDataset(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])), 2)
    assert len(score_module("EL2N", module, loader, progress=False).scores) == 4
    with pytest.raises(ValueError, match=r"Expected `features` of each sample, .* only \['logits', 'targets'\]. Pass"):
        score_module("KCenter", module, loader, progress=False)


def test_images_of_any_shape_for_deepfool():
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    inputs, targets = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    file = score_module("DeepFool", module, DataLoader(TensorDataset(inputs, targets), 2), progress=False, max_iter=3)
    torch.testing.assert_close(file.scores, deepfool(module, inputs, 3))
    assert file.meta["parameters"] == {"max_iter": 3}


@pytest.mark.parametrize(
    ("method", "kwargs", "match"),
    [
        ("TDDS", {}, "`method` to be one of"),
        ("KCentre", {}, "`method` to be one of"),
        ("KCenter", {"thresold": 0.9}, "parameters of KCenter, which takes first, but got thresold"),
        ("EL2N", {"num_samples": 3}, "parameters of EL2N, which takes num_epochs, but got num_samples"),
        ("KCenter", {"prune_ratio": 1.0}, r"`prune_ratio` to be a number in \[0, 1\)"),
        ("KCenter", {"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments(trained, method, kwargs, match):
    before = len(trained.steps)
    with pytest.raises(ValueError, match=match):
        score_module(method, trained, make_loader(), progress=False, **kwargs)
    if "prune_ratio" not in kwargs and "seed" not in kwargs:
        assert len(trained.steps) == before


def test_a_module_without_the_mixin():
    model = PlainModel()
    model.forward = lambda x: model.layer(x)
    file = score_module("EL2N", model, make_loader(), progress=False)
    x, y, _ = make_loader().dataset.tensors
    torch.testing.assert_close(file.scores, error_norm(model.layer(x).detach().softmax(1), y))
