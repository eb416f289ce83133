r"""Principal subspaces of a weight: the leading directions that hold a share of its energy.

Of a weight as a matrix, :math:`W = U \Sigma V^\top`, the energy is :math:`\sum_i \sigma_i^2`. Kept are the first k
directions, k the least number with

.. math:: \sum_{i \le k} \sigma_i^2 \ge \eta \sum_i \sigma_i^2 .

Source:
    CERSA, arXiv 2605.08174, of which the abstract was at hand.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fera.errors import FeraError

_ROUNDING = 1e-12  # of the energy


class Subspace(NamedTuple):
    """The principal part of a weight.

    Args:
        left: U, its leading columns, shape (out, k), float64; of each the entry that is largest is above 0.
        values: the singular values, shape (k,), float64, falling.
        right: V^T, its leading rows, shape (k, in), float64.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def rank_for(values: Tensor, energy: float) -> int:
    """How many leading directions hold a share of the energy.

    Args:
        values: all singular values, falling, shape (n,).
        energy: the share, in (0, 1].

    Returns:
        From 1 to n.
    """
    squares = values.double().square()
    total = squares.sum()
    # Against what is missing: near 1, sums of what is there differ by rounding alone.
    missing = squares.flip(0).cumsum(0).flip(0)  # from each direction on
    kept = int((missing - (1 - energy) * total > _ROUNDING * total).sum())
    return min(max(kept, 1), len(values))


def principal_subspace(weight: Tensor, energy: float) -> Subspace:
    """Find the directions of a weight that hold a share of its energy.

    Args:
        weight: shape (out, in) or, of a convolution, (out, in, ...), which is read as (out, in ...).
        energy: the share, in (0, 1].

    Raises:
        FeraError: the weight is not finite.
    """
    matrix = weight.detach().flatten(1).double()
    if not torch.isfinite(matrix).all():
        raise FeraError("a weight of the base is not finite, so it has no principal directions")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = rank_for(values, energy)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    # Directions have no sign of their own: the same one on every machine.
    signs = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()
    return Subspace(left * signs, values, right * signs.T)
