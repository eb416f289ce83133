"""Neighbours of the method, beside a LoRA of the same size."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.contestants import (
    LORA,
    WIDE,
    Batch,
    batch_for,
    emoji_unet,
    small_sdxl,
    training_step,
    with_fera,
    with_gradient_routing,
    with_lora,
    with_soft_prompt,
)
from benchmarks.full_models import shallow_sdxl
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting

TOKENS = 8


class Case(NamedTuple):
    """A base to race on.

    Args:
        name: of the base and its batch, in words.
        base: the denoiser, frozen.
        batch: what it is trained on.
        rounds: how often each contestant has its turn.
    """

    name: str
    base: Any
    batch: Batch
    rounds: int


def bases(setting: Setting) -> Iterator[Case]:
    """A small base, one of many narrow layers, where what comes with each layer weighs most, and one of real width."""
    for name, build, size, tokens, rounds in (
        ("emoji base", emoji_unet, 8, 16, 30),
        ("small SDXL", small_sdxl, 2, 77, 30),
        ("SDXL at full width and a quarter of its layers, 512 pixels", shallow_sdxl, 1, 77, 5),
    ):
        base = build(setting)
        batch = batch_for(base, 1 if setting.small else size, tokens)
        yield Case(f"{name}, batch {len(batch.target)}", base, batch, rounds)


def races(setting: Setting) -> Iterator[Race]:
    """Steps whose updates are routed, one of three experts; and steps with a soft prompt."""
    for case, base, batch, rounds in bases(setting):
        yield Race(
            f"training step, {case}, {WIDE} ranks",
            {
                "updates routed": training_step(with_gradient_routing(base), batch, routes_updates=True),
                LORA: training_step(with_lora(base), batch),
            },
            [Comparison("updates routed", LORA, 1.10)],
            rounds=rounds,
        )
        states = batch.inputs["encoder_hidden_states"].shape[1]
        yield Race(
            f"training step, {case}, {TOKENS} vectors before {states} states",
            {
                "fera with a soft prompt": training_step(with_soft_prompt(base, TOKENS), batch),
                "fera": training_step(with_fera(base), batch),
                "fera with longer captions": training_step(
                    with_fera(base), batch_for(base, len(batch.target), states + TOKENS)
                ),
            },
            [
                Comparison("fera with a soft prompt", "fera", 1.02),
                Comparison("fera with longer captions", "fera"),
            ],
            rounds=rounds,
        )
