"""Frequency-energy consistency: the correction should have the spectrum of the error it corrects."""

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.method.bands import FrequencyBands

# Energy ratios below this count as this: a square root has no finite slope at zero.
_LEAST_RATIO = 1e-8


def frequency_energy_consistency(base: Tensor, adapted: Tensor, target: Tensor, bands: FrequencyBands) -> Tensor:
    r"""Frequency-energy consistency loss (FECL).

    With the correction :math:`\delta = \text{adapted} - \text{base}` and the residual
    :math:`r = \text{adapted} - \text{target}`,

    .. math::
        L = \operatorname{mean}_B \sum_k w_k
            \left( \frac{\lVert\delta_k\rVert}{\lVert\delta\rVert} - \frac{\lVert r_k\rVert}{\lVert r\rVert} \right)^2,
        \qquad w_k = \frac{\lVert r_k\rVert^2}{\sum_j \lVert r_j\rVert^2} .

    Gradients flow through the adapted prediction everywhere it occurs. Where the correction is zero (a fresh
    adapter) its ratios count as zero and carry no gradient, so the loss and its gradient are finite.

    Args:
        base: prediction with the adapter off, shape (B, C, H, W) or (B, C, L), floating point; taken as a constant.
        adapted: prediction with the adapter on, same shape.
        target: what the prediction should be, same shape; taken as a constant.
        bands: the split into K frequency bands.

    Returns:
        Scalar, float32 (float64 for float64 inputs), in [0, 1].

    Raises:
        FeraError: shapes differ or are neither 4-D nor 3-D.

    Source:
        arXiv 2511.17979.
    """
    if not base.shape == adapted.shape == target.shape:
        raise FeraError(
            "base, adapted and target must have one shape, got "
            f"{tuple(base.shape)}, {tuple(adapted.shape)} and {tuple(target.shape)}"
        )
    if base.ndim not in (3, 4):
        raise FeraError(f"predictions must have shape (B, C, H, W) or (B, C, L), got {tuple(base.shape)}")
    dtype = torch.float64 if adapted.dtype == torch.float64 else torch.float32
    adapted = adapted.to(dtype)
    residual = adapted - target.detach().to(dtype)
    correction = adapted - base.detach().to(dtype)
    difference = _norm_ratios(correction, bands) - _norm_ratios(residual, bands)
    return (bands.indicator(residual) * difference.square()).sum(dim=1).mean()


def _norm_ratios(image: Tensor, bands: FrequencyBands) -> Tensor:
    """Norm of each band over the norm of the whole, shape (B, K); zeros for an image of zeros."""
    dims = tuple(range(1, image.ndim))
    peak = image.detach().abs().amax(dim=dims, keepdim=True)
    image = image / torch.where(peak > 0, peak, 1.0)
    total = image.square().sum(dim=dims)[:, None]
    ratios = bands.energies(image) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, ratios.clamp_min(_LEAST_RATIO).sqrt(), 0.0)
