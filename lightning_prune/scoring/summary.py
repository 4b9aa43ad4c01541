"""What a score file says, as text for a terminal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_prune.scoring.score_file import ScoreFile
from lightning_prune.scoring.static_pruning import StaticPruning

_BINS, _WIDTH, _ENDS, _MOST_CLASSES = 10, 40, 10, 20
_RATIOS = (0.3, 0.5, 0.7, 0.9)
_SUSPECTED, _LEAST, _SURE = 0.5, 0.01, 3.0
"""Score above which a label is suspected; least share of such labels, and standard errors, that are warned of."""


def summarize(file: ScoreFile) -> str:
    """Describe scores: a histogram, the share of each class that is kept at four ratios, and the extreme ids.

    Where the file knows how suspect each label is (``label_issue``, as of ``lightning-prune score``), the share of
    suspected labels among those kept, and a warning if the kept end collects them.

    Args:
        file: The scores; see :func:`score_module`, :func:`load_scores`.

    Returns:
        Lines of text, without a newline at the end.

    Example:
        >>> file = ScoreFile.make(torch.tensor([0.0, 0.1, 0.2, 1.0]), method="EL2N", keep="high")
        >>> print(summarize(file))
        EL2N: scores of 4 samples, of which the high end is kept
                 0 .. 0.1           1 ####################
               0.1 .. 0.2           1 ####################
               0.2 .. 0.3           1 ####################
               0.3 .. 0.4           0
               0.4 .. 0.5           0
               0.5 .. 0.6           0
               0.6 .. 0.7           0
               0.7 .. 0.8           0
               0.8 .. 0.9           0
               0.9 .. 1             1 ####################
        Highest ids: 3 (1), 2 (0.2), 1 (0.1), 0 (0)
        Lowest ids: 0 (0), 1 (0.1), 2 (0.2), 3 (1)
    """
    scores = file.scores
    kept = f"of which the {file.keep}{' end' if file.keep != 'middle' else ''} is kept"
    if file.num_ranked is not None:
        kept = f"of which {file.num_ranked:,} were chosen"
    lines = [f"{file.meta['method']}: scores of {len(scores):,} samples, {kept}"]
    if high := file.meta.get("high"):
        lines.append(f"A high score: {high}.")
    if file.num_ranked is None:
        lines += histogram(scores)
    if "targets" in file.columns:
        lines += _class_shares(file, file.columns["targets"])
    if "label_issue" in file.columns:
        lines += _suspected_labels(file)
    chosen = (scores > 0) if file.num_ranked is not None else ~scores.isnan()
    order = scores.masked_fill(~chosen, -math.inf).argsort(descending=True, stable=True)[: int(chosen.sum())].tolist()
    first, last = ("First chosen", "Last chosen") if file.num_ranked is not None else ("Highest ids", "Lowest ids")
    for name, ids in ((first, order[:_ENDS]), (last, order[: -_ENDS - 1 : -1])):
        lines.append(f"{name}: " + ", ".join(f"{i} ({scores[i]:.4g})" for i in ids))
    return "\n".join(lines)


def histogram(scores: Tensor) -> list[str]:
    """Return a line for each interval of the finite scores, and one for what is not finite."""
    finite = scores[scores.isfinite()]
    rows: list[tuple[str, int]] = []
    if len(finite):
        low, high = (float(v) for v in torch.aminmax(finite))
        edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64).tolist() if high > low else [low, high]
        bins = ((finite.double() - low) / (high - low or 1) * _BINS).long().clamp(max=len(edges) - 2)
        counts = bins.bincount(minlength=len(edges) - 1).tolist()
        rows = [(f"{a:10.4g} .. {b:<8.4g}", n) for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    for name, found in (("infinite", scores.isinf()), ("never scored", scores.isnan())):
        if bool(found.any()):
            rows.append((f"{name:>22}", int(found.sum())))
    most = max(count for _, count in rows)
    return [f"{name} {count:6,} {'#' * math.ceil(_WIDTH / 2 * count / most)}".rstrip() for name, count in rows]


def _class_shares(file: ScoreFile, targets: Tensor) -> list[str]:
    """Return a table of the share of each class that is kept, in percent, where ``_RATIOS`` are pruned."""
    labels, sizes = torch.unique(targets, return_counts=True)
    shares: list[Tensor | None] = []
    for ratio in _RATIOS:
        if (kept := _kept(file, ratio)) is None:
            shares.append(None)
            continue
        counts = torch.searchsorted(labels, targets[kept]).bincount(minlength=len(labels))
        shares.append(100 * counts / sizes)
    names = [file.class_name(label) for label in labels.tolist()]
    width = max(8, *map(len, names[:_MOST_CLASSES]))
    head = f"{'class':>{width}}  samples" + "".join(f"  kept of {ratio:.0%} pruned" for ratio in _RATIOS)
    lines = [head]
    for i, (name, size) in enumerate(zip(names, sizes.tolist(), strict=True)):
        if i == _MOST_CLASSES:
            lines.append(f"{'...':>{width}}  and {len(labels) - i} more classes")
            break
        cells = ("-" if share is None else f"{share[i]:.0f} %" for share in shares)
        lines.append(f"{name:>{width}} {size:8,}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def _kept(file: ScoreFile, ratio: float) -> Tensor | None:
    """Return the ids that are kept where a share is pruned; None: never scored, or not chosen for this ratio."""
    try:
        return StaticPruning(file, ratio, seed=0).choose(len(file.scores)).indices
    except ValueError:
        return None


def _suspected_labels(file: ScoreFile) -> list[str]:
    """Return how many labels are suspected, of all and of those kept, and a warning if the kept end collects them."""
    suspected = file.columns["label_issue"] > _SUSPECTED
    num, count = len(suspected), int(suspected.sum())
    told = f"Suspected wrong labels: {count:,} of {num:,} ({count / num:.1%})."
    if count == 0:
        return [told]
    lines = [f"{told} Among the samples kept:"]
    worst: tuple[float, float, float] | None = None
    for ratio in _RATIOS:
        if (kept := _kept(file, ratio)) is None:
            continue
        found, expected = int(suspected[kept].sum()), count * len(kept) / num
        lines.append(f"{ratio:8.0%} pruned: {found / len(kept):6.1%}, {found:,} of them")
        if count >= _LEAST * num and found > expected + _SURE * math.sqrt(expected):
            worst = max(worst or (0.0, 0.0, 0.0), (found / len(kept), ratio, found / count))
    if worst is not None:
        lines += [
            f"Warning: what {file.meta['method']} keeps collects suspected wrong labels: {worst[0]:.0%} of the samples "
            f"kept where {worst[1]:.0%} are pruned, {count / num:.0%} of all.",
            "  Look at them with `lightning-prune find-label-issues`, correct or leave them out (its `.npz` is a score "
            "file for StaticPruning), or score with SmallLoss, DynUnc or Moderate.",
        ]
    return lines if len(lines) > 1 else []
