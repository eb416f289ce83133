"""Peak memory of a training step, counted from what PyTorch's allocator records."""

from collections.abc import Iterator

from benchmarks.contestants import (
    LORA,
    WIDE_TARGETS,
    batch_for,
    emoji_unet,
    small_sdxl,
    training_step,
    with_fera,
    with_lora,
)
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting


def races(setting: Setting) -> Iterator[Race]:
    """What a step holds beyond weights and optimizer: activations and gradients, the part that adapters can change."""
    for name, build, size, tokens in [("emoji base", emoji_unet, 8, 16), ("small SDXL", small_sdxl, 2, 77)]:
        base = build(setting)
        batch = batch_for(base, 1 if setting.small else size, tokens)
        yield Race(
            f"peak memory of a training step, {name}, batch {len(batch.target)}",
            {
                "fera": training_step(with_fera(base), batch),
                LORA: training_step(with_lora(base), batch),
            },
            [Comparison("fera", LORA, 1.00)],
            rounds=2,
            warm_up=1,  # the first step makes the optimizer's state
            meter=setting.peak_bytes,
        )
    base = emoji_unet(setting)
    batch = batch_for(base, 1 if setting.small else 8, 16)
    wide, lora = "fera, rank 1 on the wide layers", f"{LORA} on the attention"
    yield Race(
        f"peak memory of a training step, emoji base, batch {len(batch.target)}, as many weights on more layers",
        {
            wide: training_step(with_fera(base, WIDE_TARGETS, rank=1), batch),
            lora: training_step(with_lora(base), batch),
        },
        [Comparison(wide, lora, 1.25)],
        rounds=2,
        warm_up=1,
        meter=setting.peak_bytes,
    )
