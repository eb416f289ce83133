"""Whole runs: `fera train` against training the way that diffusers' script works, samples a second after start-up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contestants import batch_for, passes_alone, unet_from
from benchmarks.diffusers_loop import DiffusersLoop
from benchmarks.meters import speed
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.small_sd15 import EIGHTH, FULL, TINY, save_base
from benchmarks.trainers import STYLE, style_folder, trainer
from fera.demo import base_path


def races(setting: Setting) -> Iterator[Race]:
    """One of the emoji styles: on the emoji base at 64 x 64 pixels, and on one with the proportions of SD 1.5.

    The latter is an eighth as wide on a CPU, and SD 1.5 itself, 512 x 512 pixels, on a GPU.
    """
    size, steps = (2, 1) if setting.small else (8, 4)
    with style_folder(setting.small) as folder:
        yield _race(setting, "emoji base", folder, size, steps, rounds=16)
    # Few pictures: what they are does not matter to what a step costs, and fera encodes all of them first.
    size = 2 if setting.small else 4
    name, sizes = ("SD 1.5 at an eighth of its width", EIGHTH) if setting.is_cpu else ("SD 1.5 at full size", FULL)
    with style_folder(small=True) as folder, TemporaryDirectory() as parent:
        base = save_base(Path(parent, "base"), TINY if setting.small else sizes)
        yield _race(setting, name, folder, size, 1, rounds=8, base=base)


def _race(
    setting: Setting, name: str, folder: Path, size: int, steps: int, rounds: int, base: Path | None = None
) -> Race:
    """Each contestant takes some steps a turn."""
    unet = unet_from(setting, base or base_path())
    batch = batch_for(unet, size, tokens=16 if setting.is_cpu else FULL.tokens)
    contestants = {
        "fera train": trainer(setting, folder, "without", size, {}, base).advance,
        "fera train, compiled": trainer(setting, folder, "compiled", size, {"compile": "denoiser"}, base).advance,
        "fera train with FECL": trainer(setting, folder, "with", size, {"consistency_weight": 0.1}, base).advance,
        # What an uncompiled run cannot be faster than.
        "the base's passes alone": passes_alone(unet, batch),
        "diffusers' way": DiffusersLoop(setting, folder / "train", size, base).advance,
    }
    return Race(
        f"whole run, {name}, {STYLE}, batch {size}",
        {one: _repeated(step, steps) for one, step in contestants.items()},
        [
            *(Comparison(one, "diffusers' way", at_least=1.5) for one in contestants if one.startswith("fera")),
            Comparison("the base's passes alone", "diffusers' way"),
        ],
        rounds=rounds,
        meter=speed(steps * size),
    )


def _repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            step()

    return work
