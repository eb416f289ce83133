"""Peak memory of a training step, counted from what PyTorch's allocator records."""

from collections.abc import Iterator

from benchmarks.contestants import LORA, batch_for, emoji_unet, small_sdxl, training_step, with_fera, with_lora
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
