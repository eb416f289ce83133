"""Resident memory of whole runs: SD 1.5 at full size, trained from pictures, as processes.

Two steps of 256 x 256 pixels, checkpointed, with random weights. With an empty cache all is encoded first; with a full
one nothing is. They are compared with the same of another checkout, where the environment variable FERA_BEFORE names
its `src` folder:

    git worktree add runs/before COMMIT
    FERA_BEFORE=runs/before/src python -m benchmarks resident
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import fera
from benchmarks.full_models import SD15
from benchmarks.meters import Meter
from benchmarks.peaks import run_fera
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from fera.pipelines.base import EMOJI, load_base

_PICTURES, _STEPS = 2, 2
_PEAK = Meter(lambda work, clock: float(work()), "MB", 1e-6)
NOW, WAITING, BEFORE = "now", "now, blocks wait on the disk", "before"


def races(setting: Setting) -> Iterator[Race]:
    """A race for an empty cache, and one for a full one."""
    sources = {NOW: _SOURCE, WAITING: _SOURCE}
    if before := os.environ.get("FERA_BEFORE"):
        sources[BEFORE] = Path(before).resolve()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        base = _save_base(folder / "base", setting)
        side = 32 if setting.small else 256
        pictures = _pictures(folder / "pictures", side)
        for cache, goal in (("an empty cache", 0.6), ("a full cache", 0.5)):
            contestants = {
                name: _run(folder / name.replace(" ", "-"), source, base, pictures, side, cache, name == WAITING)
                for name, source in sources.items()
            }
            comparisons = [Comparison(WAITING, NOW)]
            if BEFORE in sources:
                comparisons = [Comparison(NOW, BEFORE), Comparison(WAITING, BEFORE, at_most=goal)]
            yield Race(
                f"resident memory of fera train, SD 1.5 at full size, {cache}",
                contestants,
                comparisons,
                rounds=1 if setting.small else 3,
                warm_up=1 if cache == "a full cache" else 0,
                meter=_PEAK,
            )


_SOURCE = Path(fera.__file__).parents[1]


def _run(
    folder: Path, source: Path, base: Path, pictures: Path, side: int, cache: str, waits: bool
) -> Callable[[], float]:
    def train() -> float:
        if cache == "an empty cache":
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        settings = {
            "base": base,
            "output_dir": folder / "run",
            "data.train_data_dir": pictures,
            "data.cache_dir": folder / "cache",
            "data.resolution": side,
            "train.steps": _STEPS,
            "train.gradient_checkpointing": "true",
            "train.report_to": "none",
        }
        settings |= {"train.offload": "disk"} if waits else {}
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        kept = {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "FERA_CACHE": str(folder / "known")}
        return run_fera(["train", *flags], kept)

    return train


def _save_base(folder: Path, setting: Setting) -> Path:
    """SD 1.5's parts in float32, the tokenizer of the emoji base with them; a tenth as wide if small."""
    tenth = {"block_out_channels": (32, 64, 128, 128)} if setting.small else {}
    vae = {"block_out_channels": (32, 32, 64, 64) if setting.small else (128, 256, 512, 512), "layers_per_block": 2}
    emoji = load_base(EMOJI)
    text = {"num_hidden_layers": 1} if setting.small else {"num_hidden_layers": 12}
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            **vae,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, **text)
        ),
        tokenizer=emoji.tokenizer,
        unet=UNet2DConditionModel.from_config(SD15 | tenth),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _pictures(folder: Path, side: int) -> Path:
    folder.mkdir()
    for number in range(_PICTURES):
        Image.effect_noise((side, side), 60 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise number {number}", encoding="utf-8")
    return folder
