"""A user's module that uses every public name, for `mypy --strict` (`make types`); `tests/test_typing.py` counts them.

It is checked, not run: values are those of the right types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import (
    IES,
    RS2,
    UCB,
    AlignPrune,
    BatchLossScore,
    Budget,
    DivBS,
    EpsilonGreedy,
    ImportanceSampling,
    InfoBatch,
    LabelIssues,
    OrderDP,
    Pruner,
    PruningCallback,
    PruningMonitor,
    PruningReport,
    RandomPruning,
    RePB,
    RHOLoss,
    ScoreRecorder,
    ScoreRegistry,
    Selection,
    SelectiveBackprop,
    SeTa,
    StaticPruning,
    WeightedLossMixin,
    analysis,
    compare,
    data,
    functional,
    report,
    schedules,
    scoring,
    testing,
)
from lightning_prune.core.table import SampleTable


@final
class Model(WeightedLossMixin, L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.sop = data.SOPLoss(40, 3)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y, ids = batch
        logits: Tensor = self.layer(x)
        losses: Tensor = self.sop(logits, y, ids)
        return self.weighted_loss(losses, logits=logits, targets=y, mask=None, sample_weight=None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), 0.1)


@final
class Hardest(PruningCallback):
    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        scores: Tensor = registry.losses.nan_to_num(nan=float("inf"))
        return Selection(scores.topk(registry.num_samples // 2).indices)


@final
class MaxLoss(scoring.Tracker):
    needs = ("losses",)

    def measure(self, batch: Any) -> Tensor:
        losses: Tensor = batch.losses
        return losses


@final
class TestHardest(testing.MethodContract):
    method = staticmethod(Hardest)


@final
class TestMaxLoss(testing.TrackerContract):
    tracker = staticmethod(MaxLoss)


def methods() -> list[PruningCallback]:
    falling = schedules.Linear(0.5, 0.1)
    return [
        InfoBatch(prune_ratio=schedules.Cosine(0.2, 0.6), anneal_ratio=0.875, mode="exact"),
        SeTa(prune_ratio=0.1, num_groups=5, window_scale=0.9),
        RePB(prune_ratio=falling, score="loss", rule="mean", target_keep=0.6),
        OrderDP(explore_ratio=0.75, exploit_ratio=0.8),
        AlignPrune(InfoBatch(), reference="self", window=25, correlation="pearson"),
        RandomPruning(prune_ratio=schedules.Steps({0.0: 0.2, 0.5: 0.4}), rescale=True),
        RS2(prune_ratio=0.7, replacement=False),
        EpsilonGreedy(epsilon=0.1),
        UCB(confidence=1.0),
        IES(threshold=1e-3),
        ImportanceSampling(floor=0.1),
        BatchLossScore(InfoBatch(), smoothing=0.9),
        SelectiveBackprop(start=0.5, end=0.9),
        DivBS(prune_ratio=0.5),
        RHOLoss(irreducible_losses="losses.npz"),
        Budget(InfoBatch(), save=0.4),
        StaticPruning(Path("scores.npz"), prune_ratio=0.5, selector="ccs", selector_args={"num_strata": 50}),
        Hardest(seed=1, warmup_epochs=2),
    ]


def train() -> tuple[Tensor, float]:
    registry = ScoreRegistry(save_to="losses.npz")
    issues, monitor = LabelIssues("multiclass"), PruningMonitor()
    recorder = ScoreRecorder([scoring.TDDS(window=5), "EL2N", MaxLoss()], save_to="scores")
    dataset = TensorDataset(torch.randn(40, 4), torch.arange(40) % 3, torch.arange(40))
    loader: DataLoader[Any] = DataLoader(dataset, 10)
    trainer = L.Trainer(callbacks=[registry, InfoBatch(), issues, monitor, recorder, PruningReport("report.html")])
    trainer.fit(Model(), loader)
    columns: dict[str, Tensor] = issues.issues()
    relabelled = data.Relabelled(dataset, issues.suggestions())
    pruner = Pruner(InfoBatch(), max_epochs=2, seed=0)
    attached = pruner.attach(DataLoader(relabelled, 10))
    for _ in pruner.epochs():
        for x, _y, _ids in attached:
            loss: Tensor = pruner.weighted_loss(x.sum(1))
            del loss
    return columns["score"], registry.saved_fraction + pruner.saved_fraction


def rules(scores: Tensor) -> list[Selection | Tensor]:
    mean, var = functional.ucb_update(scores, scores, scores, 0.3)
    generator = torch.Generator().manual_seed(0)
    return [
        functional.infobatch(scores, 0.5, generator=generator),
        functional.seta(scores, 3, 0.1, 5, 0.9, generator=generator),
        functional.kmeans_1d(scores, 5),
        functional.repb_retain(scores, scores.long(), 0.5, generator=generator),
        functional.repb_resample(scores > 0, 0.5, generator=generator),
        functional.ctr_weights(scores.long(), 10),
        functional.orderdp(scores, 8, 4, generator=generator),
        functional.orderdp_inclusion(len(scores), 8, 4),
        functional.alignment_score(scores[:, None], scores[:1], correlation="spearman"),
        functional.epsilon_greedy(scores, 4, 0.1, generator=generator),
        mean,
        var,
        functional.instance_early_stopping(scores[:, None], 1e-3),
        functional.importance_inclusion(scores, 4),
        functional.systematic_sample(scores, generator=generator),
        functional.divbs(scores[:, None], scores[:, None], 4),
        functional.selective_backprop_probs(8, 0.5),
    ]


def static(features: Tensor, targets: Tensor) -> list[Tensor | Selection | str | Path]:
    trackers: list[scoring.Tracker] = [
        scoring.AUM(),
        scoring.DUAL(),
        scoring.DynUnc(),
        scoring.EL2N(),
        scoring.Entropy(),
        scoring.Forgetting(),
        scoring.GraNd(),
        scoring.LeastConfidence(),
        scoring.Margin(),
        scoring.SmallLoss(),
    ]
    shown: scoring.Features = scoring.collect_features(Model(), DataLoader(TensorDataset(features, targets)))
    file: scoring.ScoreFile = scoring.score_features("Moderate", shown)
    other = scoring.score_module("KCenter", Model(), DataLoader(TensorDataset(features, targets)), prune_ratio=0.5)
    scores, k = scoring.load_scores(file.save("scores.npz")).scores, scoring.num_keep(len(features), 0.5)
    centroids = scoring.spherical_kmeans(features, 3, generator=torch.Generator())
    return [
        *(tracker.compute() for tracker in trackers),
        other.scores,
        scoring.save_scores("scores.npz", scores, method="mine", keep="low"),
        scoring.save_score_table(file, "scores.csv"),
        scoring.summarize(file),
        scoring.tdds(features[None]),
        scoring.moderate_distance(features, targets),
        scoring.kcenter(features, k),
        scoring.herding(features, k),
        scoring.contextual_diversity(features.softmax(1), k),
        scoring.craig(features, features, targets, 0.5),
        scoring.glister(features, features, targets, k),
        scoring.prune4rel(features.softmax(1), features, k),
        scoring.ssp_score(features, centroids),
        scoring.deepfool(Model(), features),
        scoring.select_top(scores, k, "high"),
        scoring.select_middle(scores, 0.5),
        scoring.select_per_class(targets, k, lambda ids, budget: ids[:budget]),
        scoring.rank_scores(targets, len(scores)),
        scoring.ccs(scores, k, cutoff_scores=scores, hard_cutoff=0.1),
        scoring.beta_sampling(scores, scores, k),
        scoring.random_scores(k),
        scoring.influence(features, features, targets),
        scoring.dataset_pruning(scoring.influence_vectors(features, features, targets), k),
        scoring.moso(features, features, targets),
        scoring.agreement(scoring.pseudo_labels(features, 3), targets),
        scoring.double_end_scores(scoring.proxy_margins(features, targets), 0.1),
    ]


def theory(scores: Tensor, attended: Tensor) -> list[Any]:
    bound: analysis.GeneralizationBound = analysis.generalization_bound(scores, 8, 4)
    drift: analysis.ScoreDrift = analysis.score_drift(scores, scores)
    return [
        bound.gap,
        drift.mean,
        analysis.convergence_bound(1.0, 1.0, [0.1]),
        analysis.cumulative_alignment(attended),
        analysis.drift_bound(1.0, 1.0, 0.1, 10),
        analysis.norm_accuracy_correlation(scores, scores),
        analysis.rolling_std(scores, 3),
        analysis.spectrum_deviation(10, 8, 4),
        analysis.surrogate_gap(scores, 8, 4),
        analysis.surrogate_loss(scores, 8, 4),
        functional.adjusted_epochs(10, 0.4, 0.2),
        functional.multiple_importance(scores[:, None]),
    ]


def look(scores: Tensor, targets: Tensor, probs: Tensor) -> list[Any]:
    loader: DataLoader[Any] = DataLoader(TensorDataset(probs, targets))
    table: dict[str, Tensor] = analysis.label_issues(targets, probs)
    unbiased: analysis.Unbiasedness = analysis.check_unbiased(lambda generator: Selection(targets), scores, 100)
    return [
        unbiased,
        analysis.LabelIssues is LabelIssues,
        analysis.PruningMonitor is PruningMonitor,
        analysis.class_kept_share(targets, targets, 3),
        analysis.gradient_alignment(scores, scores),
        analysis.hard_clean(probs, scores > 0, 5),
        analysis.jaccard(targets, targets),
        analysis.label_doubt("multiclass", probs, targets),
        analysis.limit_density(scores, 8, 4),
        analysis.noise_ratio(targets, scores > 0),
        analysis.sample_gradients(L.Trainer(), Model(), loader, targets, Selection(targets), seed=0),
        analysis.sample_names(TensorDataset(scores)),
        analysis.save_issues(table, "issues.csv"),
        analysis.score_summary(scores),
        analysis.separation(scores, scores > 0, scores < 0),
        analysis.summarize_issues(table),
        analysis.surrogate_weights(len(scores), 8, 4),
        analysis.usage_histogram(targets, 10),
    ]


def data_and_reports(images: Tensor, targets: Tensor) -> list[Any]:
    noisy, flipped = data.inject_label_noise(targets, "symmetric", 0.2, 3)
    corrupted = data.corrupt_images(images, 0.1)
    transforms = [data.Fog(), data.GaussianNoise(), data.LowResolution(), data.MotionBlur(), data.Occlusion()]
    module = data.NoisyLabels(data.CorruptedImages(L.LightningDataModule(), 0.04), "symmetric", 0.2, 3)
    stream: type[data.PrunedStream] = data.PrunedStream
    record: report.RunRecord = report.RunRecord.load("report.npz")
    page: str = report.render(report.summarize([record]))
    written = report.write_report([record], Path("report.html"))
    return [noisy, flipped, corrupted, transforms, module, stream, page, written, report.PruningReport is PruningReport]


def comparison() -> compare.Verdict | None:
    loader: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(4, 4)))
    found: compare.Result = compare.compare_methods(Model, lambda: loader, ["InfoBatch"], [0.3], seeds=1)
    compare.main(["--config", "run.yaml", "--methods", "InfoBatch", "--prune_ratios", "0.3"])
    verdict: compare.Verdict | None = found.verdicts[0]
    return verdict
