"""A training step of a UNet with adapters on its attention; no consistency loss."""

from collections.abc import Iterator

from benchmarks.contestants import (
    EXPERTS,
    LORA,
    RANK,
    batch_for,
    emoji_unet,
    passes_alone,
    small_sdxl,
    training_step,
    with_fera,
    with_lora,
    with_released,
)
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting


def races(setting: Setting) -> Iterator[Race]:
    """The emoji base, and a small UNet of SDXL's shape."""
    for name, build, size, tokens, rounds in [
        ("emoji base", emoji_unet, 8, 16, 60),
        ("small SDXL", small_sdxl, 2, 77, 30),
    ]:
        base = build(setting)
        batch = batch_for(base, 1 if setting.small else size, tokens)
        yield Race(
            f"training step, {name}, batch {len(batch.target)}, r={RANK}, E={EXPERTS}",
            {
                "fera": training_step(with_fera(base), batch),
                LORA: training_step(with_lora(base), batch),
                "released form": training_step(with_released(base), batch),
                "the base's passes alone": passes_alone(base, batch),
            },
            [
                Comparison("fera", LORA, 1.00),
                Comparison("fera", "released form", 0.65),
                Comparison("the base's passes alone", "released form"),
            ],
            rounds=rounds,
        )
