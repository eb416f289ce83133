"""The form that the method was released in, written plainly: the baseline of the timings.

Blurs are depthwise convolutions with sampled two-dimensional kernels, built at every call; an adapted layer computes
the full output of every expert, stacks the outputs and sums them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution_indicator(latent: Tensor, num_bands: int) -> Tensor:
    """Shares of the bands by convolution, shape (B, K): K Gaussians, K + 1 bands, of which the first K are kept."""
    finest = min(latent.shape[-2:]) / 128
    images = [latent, *(_blur(latent, finest * 2**j) for j in range(num_bands))]
    bands = [images[-1], *(images[j] - images[j + 1] for j in range(num_bands - 1, -1, -1))][:num_bands]
    energies = torch.stack([band.square().sum(dim=(1, 2, 3)) for band in bands], dim=1)
    return energies / (energies.sum(dim=1, keepdim=True) + 1e-8)


def _blur(latent: Tensor, sigma: float) -> Tensor:
    size = int(8 * sigma + 1) | 1
    offsets = torch.arange(size, dtype=latent.dtype, device=latent.device) - (size - 1) / 2
    profile = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = profile[:, None] * profile
    channels = latent.shape[1]
    kernel = (kernel / kernel.sum()).expand(channels, 1, size, size)
    return F.conv2d(latent, kernel, padding=size // 2, groups=channels)


class StackedExperts(nn.Module):
    """A linear layer with experts whose outputs are formed, stacked and summed.

    Args:
        base_layer: the frozen layer.
        num_experts: E.
        rank: of one expert.
        alpha: numerator of an expert's scale.
    """

    def __init__(self, base_layer: nn.Linear, num_experts: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.ModuleList(nn.Linear(base_layer.in_features, rank, bias=False) for _ in range(num_experts))
        self.up = nn.ModuleList(nn.Linear(rank, base_layer.out_features, bias=False) for _ in range(num_experts))
        self.scale = alpha / rank
        self.gate: Tensor | None = None
        for down in self.down:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Base output and the experts' weighted sum; `gate`, shape (B, E), has to be set before."""
        outputs = [up(down(x)) * self.scale for down, up in zip(self.down, self.up, strict=True)]
        stacked = torch.stack(outputs, dim=1)
        weights = self.gate.to(stacked.dtype).view(*self.gate.shape, *[1] * (stacked.ndim - 2))
        return self.base_layer(x) + (weights * stacked).sum(dim=1)
