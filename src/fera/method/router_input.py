"""What a router reads: how the energy of the latent is spread over the bands, the timestep, or both."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.method.released_bands import ReleasedBands
from fera.method.settings import ROUTER_INPUTS, check_router_input

# A band below this mean square, or this share, counts as empty: latents have about unit variance.
_FLOOR = 1e-4


@dataclass(frozen=True)
class RouterInput:
    r"""Reads the latent of a call for a router.

    With :math:`E_k` the energy of band k and N the entries of a latent:

    - "shares": the indicator, :math:`E_k / \sum_j E_j`, as in the paper;
    - "log_shares": their logarithms, which tell small shares apart;
    - "log_energies": :math:`\log (E_k / N)`. Unlike shares these know the scale, and so how much of the finest band is
      noise;
    - "timestep": how noisy the call says the latent is, 0 to 1; the latent is not looked at;
    - "shares+timestep" and "log_energies+timestep": both.

    Args:
        kind: one of `ROUTER_INPUTS`.
        bands: what cuts the latent into K bands.

    Raises:
        FeraError: the kind is unknown, or needs energies, and the bands have shares alone.

    Source:
        arXiv 2511.17979 for the shares. Routing by timestep: TimeStep Master, arXiv 2503.07416.
    """

    kind: str
    bands: FrequencyBands | ReleasedBands

    def __post_init__(self) -> None:
        if self.kind not in ROUTER_INPUTS:
            raise FeraError(f"router_input must be one of {', '.join(ROUTER_INPUTS)}, got {self.kind!r}")
        check_router_input(self.kind, "bands" if isinstance(self.bands, FrequencyBands) else "released")

    @property
    def size(self) -> int:
        """F, entries that the router gets of each sample."""
        bands = 0 if self.kind == "timestep" else self.bands.num_bands
        return bands + self.reads_timestep

    @property
    def reads_timestep(self) -> bool:
        """Whether the timestep is among them."""
        return self.kind.endswith("timestep")

    def __call__(self, latent: Tensor, noise_level: Tensor | None = None) -> Tensor:
        """What the router gets.

        Args:
            latent: noisy, in the denoiser's units, shape (B, C, H, W) or (B, C, L).
            noise_level: shape (B,), 0 (clean) to 1 (pure noise); needed where the timestep is read.

        Returns:
            Shape (B, F), float32.
        """
        parts = [] if self.kind == "timestep" else [self._of_bands(latent)]
        if self.reads_timestep:
            assert noise_level is not None
            parts.append(noise_level.float().unsqueeze(1))
        return torch.cat(parts, dim=1)

    def indicator(self, entries: Tensor, latent: Tensor) -> Tensor:
        """The shares of the bands, without computing them again where the router reads them.

        Args:
            entries: what the router got, shape (B, F).
            latent: the latent of which it was read.

        Returns:
            Shape (B, K).
        """
        if self.kind.startswith("shares"):
            return entries[:, : self.bands.num_bands]
        return self.bands.indicator(latent)

    def _of_bands(self, latent: Tensor) -> Tensor:
        if "energies" not in self.kind:
            shares = self.bands.indicator(latent).float()
            return shares.clamp_min(_FLOOR).log() if self.kind == "log_shares" else shares
        assert isinstance(self.bands, FrequencyBands)
        return (self.bands.energies(latent).float() / latent[0].numel()).clamp_min(_FLOOR).log()
