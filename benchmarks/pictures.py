"""Looking at pictures: `fera data check` for the first time, and once more with the index of the first."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.meters import REPORTED_SECONDS
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.startup import process

_COUNT, _DIFFERENT, _SIDE = 10_000, 100, 512


def races(setting: Setting) -> Iterator[Race]:
    """One race: both looks at the same folder, as processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(Path(folder, "pictures"), 10 if setting.small else _COUNT)
        check = ["-m", "fera.cli", "data", "check", str(pictures), "--data.resolution", str(_SIDE)]
        contestants = {"again": process(check, cache=Path(folder, "cache")), "first": process(check)}
        yield Race(
            f"fera data check, {_COUNT:,} pictures of {_SIDE} x {_SIDE}",
            contestants,
            [Comparison("again", "first", at_most=0.1)],
            rounds=1 if setting.small else 3,
            warm_up=1,
            meter=REPORTED_SECONDS,
        )


def make_pictures(folder: Path, count: int, side: int = _SIDE) -> Path:
    """JPEG pictures of smooth noise, each with a caption; a hundred of them, over and over under other names.

    Args:
        folder: where to; made.
        count: how many.
        side: in pixels.
    """
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:05}.jpg"
        if number < _DIFFERENT:
            coarse = Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            shutil.copyfile(folder / f"{number % _DIFFERENT:05}.jpg", path)
        path.with_suffix(".txt").write_text(f"noise {number}", encoding="utf-8")
    return folder
