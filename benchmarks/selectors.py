"""Greedy choice of 5,000 of 50,000 samples of 128 features: seconds and peak memory, each rule in its own process.

Run with ``python -m benchmarks.selectors [--quick]``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.measure import one_thread
from lightning_prune.scoring import contextual_diversity, herding, kcenter, prune4rel

NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES, K = 50_000, 128, 10, 5_000
MAX_SECONDS, MAX_GIBIBYTES = 120, 2
RULES = {
    "K-Center": lambda x, probs, k: kcenter(x, k, first=0),
    "Herding": lambda x, probs, k: herding(x, k),
    "Prune4ReL": lambda x, probs, k: prune4rel(probs, x, k),
    "Contextual Diversity": lambda x, probs, k: contextual_diversity(probs, k, first=0),
}


def clustered(n: int = NUM_SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and probabilities of tight classes, as a trained model makes them: every class is a crowd."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=generator)
    targets = torch.randint(NUM_CLASSES, (n,), generator=generator)
    x = (centers[targets] + 0.2 * torch.randn(n, NUM_FEATURES, generator=generator)).relu()
    return x, (0.2 * (x @ centers.T)).softmax(1)


def measure(rule: str, k: int) -> tuple[float, float, float, float]:
    """Return the seconds that a rule takes, wall and CPU, and the process's peak memory in GiB before and after."""
    one_thread()
    data = clustered()
    before = peak_gibibytes()
    wall, cpu = time.perf_counter(), time.process_time()
    RULES[rule](*data, k)
    return time.perf_counter() - wall, time.process_time() - cpu, before, peak_gibibytes()


def peak_gibibytes() -> float:
    unit = 2**30 if platform.system() == "Darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="choose 250 instead of 5,000")
    k = 250 if parser.parse_args().quick else K
    print(f"torch {torch.__version__}, one thread, CPU; n = {NUM_SAMPLES:,}, D = {NUM_FEATURES}, k = {k:,}\n")
    print("| rule | seconds | of CPU | must | peak GiB (before) | must |\n|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for rule in RULES:
        with ProcessPoolExecutor(1, context) as pool:
            seconds, cpu, before, peak = pool.submit(measure, rule, k).result()
        memory = f"{peak:.2f} ({before:.2f}) | < {MAX_GIBIBYTES}"
        print(f"| {rule} | {seconds:.1f} | {cpu:.1f} | < {MAX_SECONDS} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
