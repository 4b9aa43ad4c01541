"""DivBS' greedy with every gradient formed and each pick orthonormalised, as the published code does."""

from __future__ import annotations

import numpy as np


def greedy(a, f, k: int) -> list[int]:
    grads = np.einsum("ic,id->icd", a, f).reshape(len(a), -1)
    residual, basis, picks = grads.mean(0), [], []
    for _ in range(k):
        gain = np.abs(grads @ residual)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        direction = grads[picks[-1]].copy()
        for _ in range(2):
            for u in basis:
                direction -= (u @ direction) * u
        basis.append(direction / np.linalg.norm(direction))
        residual = residual - (basis[-1] @ residual) * basis[-1]
    return picks
