"""A step of generation: the denoiser's call as a pipeline makes it, adapters active and unmerged."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.contestants import EXPERTS, LORA, RANK, batch_for, emoji_unet, with_fera, with_lora
from benchmarks.race import Comparison, Race


def races(small: bool) -> Iterator[Race]:
    """One picture and eight, with guidance: each latent comes twice, without and with its prompt."""
    base = emoji_unet()
    for pictures in (1,) if small else (1, 8):
        one = batch_for(base, pictures, tokens=16)
        latent = torch.cat([one.latent] * 2)
        text = torch.randn(2 * pictures, 16, base.config.cross_attention_dim)
        timestep = torch.tensor(500)
        yield Race(
            f"generation step, emoji base, batch {2 * pictures}, r={RANK}, E={EXPERTS}",
            {
                "fera": _step(with_fera(base), latent, timestep, text),
                "base alone": _step(base, latent, timestep, text),
                f"{LORA}, unmerged": _step(with_lora(base), latent, timestep, text),
            },
            [Comparison("fera", "base alone", 1.03), Comparison("fera", f"{LORA}, unmerged", 0.95)],
            rounds=40,
        )


def _step(unet: nn.Module, latent: Tensor, timestep: Tensor, text: Tensor) -> Callable[[], Tensor]:
    unet.eval()

    @torch.no_grad()
    def step() -> Tensor:
        return unet(latent, timestep, encoder_hidden_states=text, return_dict=False)[0]

    return step
