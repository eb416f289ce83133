"""Routers that learn nothing: what a learned one is compared with."""

import math

import torch
from torch import Tensor, nn


class UniformRouter(nn.Module):
    """The same gate for every latent: E experts that act as one LoRA of E times the rank.

    Args:
        num_experts: E.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, inputs: Tensor) -> Tensor:
        """Gate of each sample, shape (B, E), float32, for inputs (B, F)."""
        return torch.full((inputs.shape[0], self.num_experts), 1 / self.num_experts, device=inputs.device)


class RankMaskRouter(nn.Module):
    r"""Fewer experts the noisier the latent: with experts of rank 1, the rank mask of T-LoRA.

    .. math:: g_e = \tfrac1E \, [\, e < \lfloor (E - E_{\min})(1 - s) \rfloor + E_{\min} \,], \qquad
              E_{\min} = \lceil E / 2 \rceil

    with s the noise level. The gate sums to 1 on a clean latent alone.

    Args:
        num_experts: E.

    Source:
        Soboleva et al., T-LoRA, arXiv 2507.05964, which masks the ranks so; its orthogonal initialization is left out.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, noise_level: Tensor) -> Tensor:
        """Gate of each sample, shape (B, E), float32, for noise levels (B, 1) from 0 to 1."""
        least = math.ceil(self.num_experts / 2)
        active = torch.floor((self.num_experts - least) * (1 - noise_level.float())) + least
        experts = torch.arange(self.num_experts, device=noise_level.device)
        return (experts < active).float() / self.num_experts


class NoRouter(nn.Module):
    """In the place of a router where experts act all alike, and the optimizer routes their updates."""
