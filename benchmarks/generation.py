"""A step of generation: the denoiser's call as a pipeline makes it, adapters active and unmerged."""

from collections.abc import Iterator

from benchmarks.contestants import (
    EXPERTS,
    LORA,
    RANK,
    batch_for,
    emoji_unet,
    generation_step,
    with_fera,
    with_lora,
    with_merged_alone,
)
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting


def races(setting: Setting) -> Iterator[Race]:
    """One picture and eight, with guidance: each latent comes twice, without and with its prompt."""
    base = emoji_unet(setting)
    for pictures in (1,) if setting.small else (1, 8):
        batch = batch_for(base, pictures, tokens=16).guided()
        yield Race(
            f"generation step, emoji base, batch {2 * pictures}, r={RANK}, E={EXPERTS}",
            {
                "fera": generation_step(with_fera(base), batch),
                "base alone": generation_step(base, batch),
                f"{LORA}, unmerged": generation_step(with_lora(base), batch),
                "one gate merged, no more": generation_step(with_merged_alone(base), batch),
            },
            [
                Comparison("fera", "base alone", 1.03),
                Comparison("one gate merged, no more", "base alone"),
                Comparison("fera", f"{LORA}, unmerged", 0.95),
                Comparison("one gate merged, no more", f"{LORA}, unmerged"),
            ],
            rounds=40,
        )
