"""A step of generation: the denoiser's call as a pipeline makes it, adapters active and unmerged."""

from collections.abc import Iterator

import torch

from benchmarks.contestants import EXPERTS, LORA, RANK, batch_for, emoji_unet, generation_step, with_fera, with_lora
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
                "fera": generation_step(with_fera(base), latent, timestep, text),
                "base alone": generation_step(base, latent, timestep, text),
                f"{LORA}, unmerged": generation_step(with_lora(base), latent, timestep, text),
            },
            [Comparison("fera", "base alone", 1.03), Comparison("fera", f"{LORA}, unmerged", 0.95)],
            rounds=40,
        )
