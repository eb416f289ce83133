"""Experts inside of principal subspaces, and a base held as its principal parts."""

from collections.abc import Iterator

from benchmarks.contestants import LORA, batch_for, emoji_unet, training_step, with_confined, with_fera, with_lora
from benchmarks.neighbours import bases
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from fera.pipelines.compression import compress

ENERGY = 0.95


def races(setting: Setting) -> Iterator[Race]:
    """Steps of confined experts beside a LoRA of as many weights; steps on a compressed base beside the whole one."""
    for case, base, batch, rounds in bases(setting):
        yield Race(
            f"training step, {case}, experts inside of {ENERGY:.0%} of the energy",
            {
                "experts in subspaces": training_step(with_confined(base, ENERGY), batch),
                LORA: training_step(with_lora(base), batch),
            },
            [Comparison("experts in subspaces", LORA, 1.05)],
            rounds=rounds,
        )
    base = emoji_unet(setting)
    batch = batch_for(base, 1 if setting.small else 8, 16)
    whole = training_step(with_fera(base), batch)
    compress(base, ENERGY)
    yield Race(
        f"training step, emoji base, batch {len(batch.target)}, the base held as {ENERGY:.0%} of its energy",
        {"on a compressed base": training_step(with_fera(base), batch), "on the whole base": whole},
        [Comparison("on a compressed base", "on the whole base")],
        rounds=30,
    )
