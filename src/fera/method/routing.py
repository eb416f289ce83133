"""What a router saw and answered in one forward."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """How one adapter was routed in one forward.

    Args:
        adapter: its name.
        timestep: as the denoiser got it; shape () or (B,), or None where it got none.
        indicator: shape (B, K), float32.
        gates: shape (B, E), float32.
        component: name of the denoiser in its pipeline; "denoiser" where one was traced without a pipeline.
    """

    adapter: str
    timestep: Tensor | None
    indicator: Tensor
    gates: Tensor
    component: str = "denoiser"

    def to_cpu(self) -> "Routing":
        """The same on the CPU."""
        timestep = self.timestep.cpu() if self.timestep is not None else None
        return replace(self, timestep=timestep, indicator=self.indicator.cpu(), gates=self.gates.cpu())
