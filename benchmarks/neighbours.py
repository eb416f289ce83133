"""Neighbours of the method, beside a LoRA of the same size."""

from collections.abc import Iterator

from benchmarks.contestants import (
    LORA,
    WIDE,
    batch_for,
    emoji_unet,
    small_sdxl,
    training_step,
    with_fera,
    with_gradient_routing,
    with_lora,
    with_soft_prompt,
)
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting

TOKENS = 8


def races(setting: Setting) -> Iterator[Race]:
    """Steps whose updates are routed, one of three experts; and steps with a soft prompt."""
    for name, build, size, tokens in [("emoji base", emoji_unet, 8, 16), ("small SDXL", small_sdxl, 2, 77)]:
        base = build(setting)
        batch = batch_for(base, 1 if setting.small else size, tokens)
        yield Race(
            f"training step, {name}, batch {len(batch.target)}, {WIDE} ranks",
            {
                "updates routed": training_step(with_gradient_routing(base), batch, routes_updates=True),
                LORA: training_step(with_lora(base), batch),
            },
            [Comparison("updates routed", LORA, 1.10)],
            rounds=30,
        )
        yield Race(
            f"training step, {name}, batch {len(batch.target)}, {TOKENS} vectors before {tokens} states",
            {
                "fera with a soft prompt": training_step(with_soft_prompt(base, TOKENS), batch),
                "fera": training_step(with_fera(base), batch),
            },
            [Comparison("fera with a soft prompt", "fera", 1.02)],
            rounds=30,
        )
