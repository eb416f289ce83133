"""Weights that are at least 0 and sum to 1."""

import torch
from torch import Tensor


def least_squares(gram: Tensor, towards: Tensor, start: Tensor) -> Tensor:
    """Minimize w G w - 2 b w over weights that are at least 0 and sum to 1, by projected steps; of few experts."""
    weights = start.double()
    step = 1 / max(float(torch.linalg.eigvalsh(gram)[-1]), 1e-30)
    for _ in range(2000):
        weights = on_simplex(weights - step * (gram @ weights - towards))
    return weights


def on_simplex(point: Tensor) -> Tensor:
    """The nearest weights to a point, shape (E,), that are at least 0 and sum to 1 (Duchi et al., 2008)."""
    ordered = point.sort(descending=True).values
    above = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1)
    count = int((ordered > above).sum())
    return (point - above[count - 1]).clamp(min=0)
