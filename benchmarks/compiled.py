"""Steps of training and of generation under torch.compile: the emoji base on a CPU, SD 1.5 at full size on a GPU."""

from collections.abc import Iterator

from benchmarks.contestants import (
    EXPERTS,
    LORA,
    RANK,
    batch_for,
    compiled,
    copied,
    emoji_unet,
    generation_step,
    training_step,
    with_fera,
    with_lora,
)
from benchmarks.full_models import made, random_buffer
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.small_sd15 import FULL, unet_of
from fera.pipelines.base import lay_out


def races(setting: Setting) -> Iterator[Race]:
    """Compiled as a whole, and by the blocks that the denoiser repeats."""
    if setting.is_cpu:
        name, base, size, tokens = "emoji base", emoji_unet(setting), 1 if setting.small else 8, 16
    else:
        base = lay_out(made(lambda: unet_of(FULL), random_buffer(setting)))
        name, size, tokens = "SD 1.5 at full size", 4, FULL.tokens
    plain, whole = "fera, uncompiled", f"{LORA}, compiled"
    batch = batch_for(base, size, tokens)
    yield Race(
        f"training step, {name}, batch {size}, r={RANK}, E={EXPERTS}, compiled",
        {
            plain: training_step(with_fera(base), batch),
            "fera, blocks compiled": training_step(compiled(with_fera(base), "blocks"), batch),
            "fera, compiled": training_step(compiled(with_fera(base)), batch),
            whole: training_step(compiled(with_lora(base)), batch),
        },
        [
            Comparison("fera, compiled", whole, 1.00),
            Comparison("fera, compiled", plain),
            Comparison("fera, blocks compiled", plain),
        ],
        rounds=12,
    )
    batch = batch_for(base, 1, tokens).guided()
    yield Race(
        f"generation step, {name}, batch 2, r={RANK}, E={EXPERTS}, compiled",
        {
            plain: generation_step(with_fera(base), batch),
            "fera, compiled": generation_step(compiled(with_fera(base)), batch),
            "base alone, compiled": generation_step(compiled(copied(base)), batch),
            f"{whole}, unmerged": generation_step(compiled(with_lora(base)), batch),
        },
        [
            Comparison("fera, compiled", "base alone, compiled", 1.03),
            Comparison("fera, compiled", f"{whole}, unmerged", 0.95),
            Comparison("fera, compiled", plain),
        ],
        rounds=20,
    )
