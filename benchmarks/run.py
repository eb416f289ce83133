"""Whole runs: `fera train` against training the way that diffusers' script works, samples a second after start-up."""

from collections.abc import Callable, Iterator

from benchmarks.diffusers_loop import DiffusersLoop
from benchmarks.meters import speed
from benchmarks.race import Comparison, Race
from benchmarks.trainers import STYLE, style_folder, trainer


def races(small: bool) -> Iterator[Race]:
    """The emoji base and one of its styles at 64 x 64 pixels; each takes some steps a turn."""
    size, steps = (2, 1) if small else (8, 4)
    with style_folder(small) as folder:
        contestants = {
            "fera train": trainer(folder, "with", size, {}),
            "fera train without FECL": trainer(folder, "without", size, {"consistency_weight": 0.0}),
            "diffusers' way": DiffusersLoop(folder / "train", size),
        }
        yield Race(
            f"whole run, emoji base, {STYLE}, batch {size}",
            {name: _repeated(contestant.advance, steps) for name, contestant in contestants.items()},
            [Comparison(name, "diffusers' way", at_least=1.5) for name in ("fera train", "fera train without FECL")],
            rounds=16,
            meter=speed(steps * size),
        )


def _repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            step()

    return work
