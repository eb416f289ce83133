r"""Frequency bands of a latent: how much energy it holds at which scale.

A latent, of two dimensions (pictures) or of one (sound), is split by differences of Gaussians. Only the energies of
the bands are needed for routing and for the consistency loss, and a Gaussian blur with reflecting borders is a product
in the domain of the cosine transform (DCT-II), so energies are a weighted sum over the power spectrum: two small
matrix products, no convolution.
"""

import math

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.support.tracing import has_values

# Entries, one a size and one a side: enough for some forty sizes, and below 20 MB for 128 x 128 latents in three bands.
_CACHE_SIZE = 96

# The least normal float32, about.
_LEAST = 1e-37


class FrequencyBands:
    r"""K difference-of-Gaussian bands of a latent, low to high frequency.

    With :math:`G(\sigma)` a Gaussian low-pass and
    :math:`\sigma_j = 2^j \max(\kappa \min(H, W), \sigma_{\min})`,

    .. math::
        \text{low} = G(\sigma_{K-2})\,z, \qquad
        \text{mid}_j = G(\sigma_{j-1})\,z - G(\sigma_j)\,z, \qquad
        \text{high} = z - G(\sigma_0)\,z .

    The bands sum to the latent. Scales follow the size of the latent, so an image and its resized copy have the same
    shares. The floor :math:`\sigma_{\min}` keeps the finest Gaussian at half a latent pixel, where a pixel grid can
    still show it: it acts below 64 x 64 latents at the default `kappa`, and only there are shares of different sizes
    not comparable.

    A latent of one dimension, (B, C, L), is split along it, with L in the place of the shorter side. Borders reflect
    (half-sample symmetric, as in the DCT-II).

    Args:
        num_bands: K, at least 2.
        kappa: finest Gaussian's deviation as a fraction of the latent's shorter side, in (0, 1].
        min_sigma: floor of the finest deviation in latent pixels, at least 0; 0 switches it off.

    Raises:
        FeraError: an argument is out of its range.

    Source:
        arXiv 2511.17979. Departs from the released code, which drops the high band and samples its kernels;
        docs/method.md has the reasons.
    """

    def __init__(self, num_bands: int = 3, kappa: float = 1 / 128, min_sigma: float = 0.5) -> None:
        if not isinstance(num_bands, int) or isinstance(num_bands, bool) or num_bands < 2:
            raise FeraError(f"num_bands must be an integer of at least 2, got {num_bands!r}")
        if not 0 < kappa <= 1:
            raise FeraError(f"kappa must lie in (0, 1], got {kappa!r}")
        if not (min_sigma >= 0 and math.isfinite(min_sigma)):
            raise FeraError(f"min_sigma must be a finite number of at least 0, got {min_sigma!r}")
        self.num_bands = num_bands
        self.kappa = float(kappa)
        self.min_sigma = float(min_sigma)
        self._cache: dict[tuple[object, ...], Tensor] = {}  # at most _CACHE_SIZE entries

    def __repr__(self) -> str:
        return f"FrequencyBands(num_bands={self.num_bands}, kappa={self.kappa:g}, min_sigma={self.min_sigma:g})"

    def sigmas(self, height: int, width: int | None = None) -> list[float]:
        """Deviations of the K - 1 Gaussians in latent pixels, finest first; without a width, of a latent (B, C, L)."""
        shorter = height if width is None else min(height, width)
        finest = max(self.kappa * shorter, self.min_sigma)
        return [finest * 2**j for j in range(self.num_bands - 1)]

    def transfer(
        self,
        height: int,
        width: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        r"""Transfer function of each band over the DCT-II frequencies.

        :math:`\exp(-\sigma^2 |\omega|^2 / 2)` for a Gaussian, with :math:`\omega = \pi (u / H, v / W)` in radians per
        latent pixel (:math:`\pi u / L` for one dimension); the bands are their differences and sum to 1 at every
        frequency.

        Args:
            height: H, at least 2; L for a latent of one dimension.
            width: W, at least 2; None for a latent of one dimension.
            device: where to put it; the CPU by default.
            dtype: float32 or float64.

        Returns:
            Shape (K, H, W) or (K, L), values in [0, 1].
        """
        squared_frequency = (torch.arange(height, device=device, dtype=torch.float64) * (math.pi / height)) ** 2
        if width is not None:
            across = torch.arange(width, device=device, dtype=torch.float64) * (math.pi / width)
            squared_frequency = squared_frequency[:, None] + across**2
        low_passes = [torch.exp(-(sigma**2) / 2 * squared_frequency) for sigma in self.sigmas(height, width)]
        edges = [torch.ones_like(squared_frequency), *low_passes, torch.zeros_like(squared_frequency)]
        high_to_low = [finer - coarser for finer, coarser in zip(edges[:-1], edges[1:], strict=True)]
        return torch.stack(high_to_low[::-1]).to(dtype)

    def energies(self, latent: Tensor) -> Tensor:
        r"""Energy of a latent in each frequency band.

        .. math:: E_k = \lVert b_k \rVert^2 = \sum_\omega P(\omega)\, H_k(\omega)^2,
                  \qquad P = \sum_C |\mathrm{DCT}_2(z)|^2

        Args:
            latent: shape (B, C, H, W) or (B, C, L), floating point, any scale.

        Returns:
            Shape (B, K), float32 (float64 for a float64 latent), in squared latent units, low to high frequency.
            Computed in that precision under autocast too. The energies of the bands do not add up to the latent's:
            neighbouring bands overlap.

        Raises:
            FeraError: `latent` is neither 4-D nor 3-D, not floating point, or a side is shorter than 2.

        Source:
            arXiv 2511.17979. Departs from the released code, which drops the high band.
        """
        latent = self._checked(latent)
        with torch.autocast(latent.device.type, enabled=False):
            power = self._spectrum(latent).square().sum(dim=1).flatten(1)
            return power @ self._squared_transfer(latent)

    def indicator(self, latent: Tensor) -> Tensor:
        r"""Frequency-energy indicator: each band's share of the energy.

        .. math:: e_k = E_k / \textstyle\sum_j E_j

        Args:
            latent: shape (B, C, H, W) or (B, C, L), floating point, any scale.

        Returns:
            Shape (B, K), float32 (float64 for a float64 latent), non-negative, each row sums to 1. A latent of zeros
            gives 1 / K everywhere.

        Raises:
            FeraError: as `energies`.

        Source:
            arXiv 2511.17979.
        """
        latent = self._checked(latent)
        # Shares do not depend on the scale; dividing it out keeps the squares inside float32's range.
        peak = latent.detach().abs().amax(dim=tuple(range(1, latent.ndim)), keepdim=True)
        # The least keeps zeros from being divided by zero, and is far below what a share is rounded to.
        energies = self.energies(latent / peak.clamp_min(_LEAST)) + _LEAST
        return energies / energies.sum(dim=1, keepdim=True)

    def split(self, latent: Tensor) -> Tensor:
        """The latent's bands, each of the latent's own shape.

        Args:
            latent: shape (B, C, H, W) or (B, C, L), floating point.

        Returns:
            Shape (B, K, C, H, W) or (B, K, C, L), float32 (float64 for a float64 latent), low to high frequency; the
            bands of a sample sum to it.

        Raises:
            FeraError: as `energies`.
        """
        latent = self._checked(latent)
        with torch.autocast(latent.device.type, enabled=False):
            transfer = self.transfer(*latent.shape[2:], device=latent.device, dtype=latent.dtype)
            filtered = self._spectrum(latent)[:, None] * transfer[:, None]
            if latent.ndim == 4:
                filtered = self._basis(latent.shape[-2], latent).T @ filtered
            return filtered @ self._basis(latent.shape[-1], latent)

    def _checked(self, latent: Tensor) -> Tensor:
        if latent.ndim not in (3, 4):
            raise FeraError(f"a latent must have shape (B, C, H, W) or (B, C, L), got {tuple(latent.shape)}")
        if not latent.is_floating_point():
            raise FeraError(f"a latent must be floating point, got {latent.dtype}")
        if min(latent.shape[2:]) < 2:
            raise FeraError(f"each side of a latent must be at least 2, got {tuple(latent.shape[2:])}")
        return latent if latent.dtype == torch.float64 else latent.float()

    def _spectrum(self, latent: Tensor) -> Tensor:
        """Orthonormal DCT-II over the latent's one or two dimensions, in the latent's shape."""
        if latent.ndim == 4:
            latent = self._basis(latent.shape[-2], latent) @ latent
        return latent @ self._basis(latent.shape[-1], latent).T

    def _basis(self, size: int, like: Tensor) -> Tensor:
        """Orthonormal DCT-II matrix, shape (size, size): row u samples the cosine of frequency u."""
        key = ("basis", size, like.device, like.dtype)
        basis = self._known(key, like)
        if basis is None:
            # Built outside inference mode: the same matrix later serves training, and autograd refuses to save
            # inference tensors.
            with torch.inference_mode(False):
                index = torch.arange(size, device=like.device, dtype=torch.float64)
                basis = torch.cos(math.pi / size * index[:, None] * (index[None, :] + 0.5)) * math.sqrt(2 / size)
                basis[0] /= math.sqrt(2)
                basis = self._remember(key, basis.to(like.dtype), like)
        return basis

    def _squared_transfer(self, like: Tensor) -> Tensor:
        """Squared transfer functions as a matrix, shape (H * W, K) or (L, K)."""
        key = ("transfer", *like.shape[2:], like.device, like.dtype)
        squared = self._known(key, like)
        if squared is None:
            with torch.inference_mode(False):
                transfer = self.transfer(*like.shape[2:], device=like.device, dtype=like.dtype)
                squared = self._remember(key, transfer.square().flatten(1).T.contiguous(), like)
        return squared

    def _known(self, key: tuple[object, ...], like: Tensor) -> Tensor | None:
        """What is kept, for a latent that can be computed with it: a fake one cannot outside of the compiler."""
        return self._cache.get(key) if torch.compiler.is_compiling() or has_values(like) else None

    def _remember(self, key: tuple[object, ...], tensor: Tensor, like: Tensor) -> Tensor:
        """Keep a tensor, starting over where there are too many: sizes without end must not fill the memory.

        What is made while a call is recorded instead of computed is not kept: others could not compute with it.
        """
        if not has_values(like):
            return tensor
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[key] = tensor
        return tensor
