"""What routing costs as ranks, samples and tokens grow: linear layers, forward and backward."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.layer import linear_contestants
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting

# Layers share what belongs to the gate, in every denoiser: one layer by itself would pay for all of it.
LAYERS = 4


@dataclass(frozen=True)
class Size:
    """How large the work is.

    Args:
        experts: E.
        rank: r of one expert.
        batch: samples.
        tokens: of each sample.
        width: features of a layer.
    """

    experts: int = 4
    rank: int = 4
    batch: int = 4
    tokens: int = 1024
    width: int = 320


MIDDLE = Size()
SIZES = [
    *(replace(MIDDLE, experts=experts, rank=rank) for experts, rank in [(2, 2), (4, 4), (4, 16), (4, 64), (16, 16)]),
    *(replace(MIDDLE, batch=batch) for batch in (1, 16, 64)),
    *(replace(MIDDLE, tokens=tokens) for tokens in (64, 4096, 16384)),
    # The corners: where the fixed cost of a call is most of it, and where none of it is.
    Size(experts=2, rank=2, batch=1, tokens=64),
    Size(experts=4, rank=64, batch=1, tokens=64),
    Size(experts=4, rank=64, batch=1, tokens=16384),
]


def races(setting: Setting) -> Iterator[Race]:
    """One axis at a time from a middle size, then corners."""
    for size in [Size(2, 2, 2, 4, 8)] if setting.small else SIZES:
        shape = (size.batch, size.tokens, size.width)
        contestants = linear_contestants(setting, shape, size.experts, size.rank, LAYERS)
        del contestants["released form"]
        yield Race(
            f"E={size.experts} r={size.rank} (E·r {size.experts * size.rank}), batch {size.batch}, "
            f"{size.tokens} tokens, {LAYERS} layers of width {size.width}",
            contestants,
            [Comparison("fera", "PEFT LoRA", 1.05)],
            rounds=_rounds(size),
            warm_up=1,
        )


def _rounds(size: Size) -> int:
    """Fewer where one takes seconds, more where it takes a millisecond."""
    rows = size.batch * size.tokens
    return 6 if rows > 32_768 else 10 if rows > 8192 else 20 if rows > 512 else 60
