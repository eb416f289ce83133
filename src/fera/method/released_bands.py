"""The indicator as the authors' released code computes it, for adapters that were trained with it."""

import torch
from torch import Tensor

from fera.errors import FeraError


class ReleasedBands:
    r"""K bands of a latent by sampled Gaussians with zero borders, without the highest band.

    With :math:`G_j` a blur of deviation :math:`\sigma_j = 2^j \kappa \min(H, W)` and :math:`j = 0 \ldots K-1`,

    .. math:: b_0 = G_{K-1} z, \qquad b_k = G_{K-1-k} z - G_{K-k} z \quad (k = 1 \ldots K-1) .

    What is finer than :math:`G_0` would be a band K + 1; it is dropped, so the bands do not sum to the latent. A kernel
    is a Gaussian sampled at whole pixels up to :math:`4 \sigma` and scaled to sum 1; outside the latent there are
    zeros. A new adapter is better served by `fera.FrequencyBands`.

    Args:
        num_bands: K, at least 2.
        kappa: finest Gaussian's deviation as a fraction of the latent's shorter side; the released code has 1 / 128.

    Source:
        YinBo0927/FeRA, FrequencyEnergyIndicator. Departs in computing in float32 at least.
    """

    def __init__(self, num_bands: int = 3, kappa: float = 1 / 128) -> None:
        self.num_bands = num_bands
        self.kappa = kappa

    def split(self, latent: Tensor) -> Tensor:
        """The latent's K bands as images.

        Args:
            latent: shape (B, C, H, W), floating point.

        Returns:
            Shape (B, K, C, H, W), float32 (float64 for a float64 latent), low to high frequency.

        Raises:
            FeraError: `latent` is not 4-D.
        """
        if latent.ndim != 4:
            raise FeraError(f"the released indicator takes latents of shape (B, C, H, W), got {tuple(latent.shape)}")
        latent = latent if latent.dtype == torch.float64 else latent.float()
        height, width = latent.shape[-2:]
        images = []
        with torch.autocast(latent.device.type, enabled=False):
            for j in range(self.num_bands):
                sigma = self.kappa * min(height, width) * 2**j
                images.append(_blur_matrix(height, sigma, latent) @ latent @ _blur_matrix(width, sigma, latent).T)
        finer = [fine - coarse for fine, coarse in zip(images[:-1], images[1:], strict=True)]
        return torch.stack([images[-1], *finer[::-1]], dim=1)

    def indicator(self, latent: Tensor) -> Tensor:
        """Each kept band's share of their energy.

        Args:
            latent: shape (B, C, H, W), floating point.

        Returns:
            Shape (B, K), float32 (float64 for a float64 latent), non-negative; each row sums to 1, to 0 for zeros.

        Raises:
            FeraError: `latent` is not 4-D.
        """
        energies = self.split(latent).square().sum(dim=(2, 3, 4))
        return energies / (energies.sum(dim=1, keepdim=True) + 1e-8)


def _blur_matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    """Blur of one axis as a matrix, shape (size, size): the two-dimensional kernel is the product of two such."""
    reach = (int(8 * sigma + 1) | 1) // 2
    offsets = torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype)
    total = torch.exp(-offsets.square() / (2 * sigma**2)).sum()
    index = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = index[:, None] - index[None, :]
    kernel = torch.exp(-distance.square() / (2 * sigma**2)) / total
    return torch.where(distance.abs() <= reach, kernel, torch.zeros_like(kernel))
