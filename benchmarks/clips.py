"""Memory of training on clips: a process that trains on two thousand of them against one that trains on twenty."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

import fera
from benchmarks.meters import Meter
from benchmarks.peaks import run_fera
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.small_wan import save_base

_MANY, _FEW = 2000, 20
_FRAMES, _SIDE, _STEPS, _CAPTIONS = 5, 32, 40, 100

_PEAK = Meter(lambda work, clock: float(work()), "MB", 1e-6)


def races(setting: Setting) -> Iterator[Race]:
    """One race: each contestant decodes, encodes and trains from an empty cache, as a process of its own."""
    many, few, steps = (6, 3, 2) if setting.small else (_MANY, _FEW, _STEPS)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        base = save_base(folder / "base")
        contestants = {f"{count} clips": _run(folder, base, count, steps) for count in (many, few)}
        yield Race(
            f"peak memory of fera train, clips of {_FRAMES} frames of {_SIDE} x {_SIDE}, {steps} steps",
            contestants,
            [Comparison(f"{many} clips", f"{few} clips", at_most=1.1)],
            rounds=1 if setting.small else 3,
            warm_up=0,
            meter=_PEAK,
        )


def _run(folder: Path, base: Path, count: int, steps: int) -> Callable[[], float]:
    clips = _clips(folder / f"clips-{count}", count)

    def train() -> float:
        output = folder / f"run-{count}"
        shutil.rmtree(output, ignore_errors=True)
        settings = {
            "base": base,
            "output_dir": output,
            "data.train_data_dir": clips,
            "data.num_frames": _FRAMES,
            "data.resolution": _SIDE,
            "train.steps": steps,
            "train.report_to": "none",
            "adapter.r": 2,
        }
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        kept = {"PYTHONPATH": str(Path(fera.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
        return run_fera(["train", *flags], kept)

    return train


def _clips(folder: Path, count: int) -> Path:
    """Videos of coarse noise, each unlike the others, with some captions over and over."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:04}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16)
            stream.width, stream.height, stream.pix_fmt = _SIDE, _SIDE, "yuv420p"
            stream.options = {"preset": "ultrafast"}
            for _ in range(_FRAMES):
                coarse = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(coarse.repeat(_SIDE // 8, 0).repeat(_SIDE // 8, 1), "rgb24")
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        path.with_suffix(".txt").write_text(f"noise {number % _CAPTIONS}", encoding="utf-8")
    return folder
