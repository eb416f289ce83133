"""Peak memory of a training step, counted from what PyTorch's allocator records."""

from collections.abc import Callable, Iterator

from torch import nn

from benchmarks.contestants import LORA, batch_for, emoji_unet, small_sdxl, training_step, with_fera, with_lora
from benchmarks.meters import PEAK_BYTES
from benchmarks.race import Comparison, Race


def races(small: bool) -> Iterator[Race]:
    """What a step holds beyond weights and optimizer: activations and gradients, the part that adapters can change."""
    cases: list[tuple[str, Callable[[], nn.Module], int, int]] = [
        ("emoji base", emoji_unet, 1 if small else 8, 16),
        ("small SDXL", lambda: small_sdxl(1 if small else 10), 1 if small else 2, 77),
    ]
    for name, build, size, tokens in cases:
        base = build()
        batch = batch_for(base, size, tokens)
        yield Race(
            f"peak memory of a training step, {name}, batch {size}",
            {
                "fera": training_step(with_fera(base), batch),
                LORA: training_step(with_lora(base), batch),
            },
            [Comparison("fera", LORA, 1.00)],
            rounds=2,
            warm_up=1,  # the first step makes the optimizer's state
            meter=PEAK_BYTES,
        )
