r"""How far the energies of two domains' latents lie apart, band by band.

The logarithms of the energies of a domain's latents in a band have a mean :math:`\mu` and a deviation :math:`\sigma`.
Taken for normal and independent between bands, those of two domains lie apart by the 2-Wasserstein distance

.. math:: d(a, b)^2 = \sum_k (\mu_{a,k} - \mu_{b,k})^2 + (\sigma_{a,k} - \sigma_{b,k})^2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-12  # of an energy: a latent may be constant


def log_energies(energies: Tensor, size: int) -> Tensor:
    """Logarithms of mean energies.

    Args:
        energies: the energies of latents by band, shape (N, K), at least 0.
        size: numbers in a latent.

    Returns:
        Shape (N, K), float64.
    """
    return (energies.double() / size).clamp_min(_LEAST).log()


def energy_distances(domains: Sequence[Tensor]) -> tuple[tuple[float, ...], ...]:
    """Distances between all domains.

    Args:
        domains: log energies of each domain's latents, shape (N, K), N at least 1.

    Returns:
        A row and a column for each domain.
    """
    points = torch.stack([_point(energies) for energies in domains])
    # Not torch.cdist, which may go through a matrix product: equal domains are to be at 0.
    distances = (points[:, None] - points[None]).square().sum(dim=-1).sqrt()
    return tuple(tuple(row) for row in distances.tolist())


def _point(energies: Tensor) -> Tensor:
    """Means and deviations of a domain's log energies, shape (2 K,)."""
    energies = energies.double()
    return torch.cat([energies.mean(dim=0), energies.std(dim=0, correction=0)])
