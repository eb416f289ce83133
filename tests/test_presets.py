"""The presets under examples/, through the real command line, on tiny models of the real classes."""

import json
from pathlib import Path

import pytest
from clip_cases import clip_folder
from diffusers import DDIMScheduler
from sound_cases import sound_folder
from trained_cases import CASES, wan
from trained_cases.case import Case

from fera.adapters.file import open_adapter
from fera.cli.main import main
from fera.config.reading import load_config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PRESETS = {
    "sd15-style.toml": "sd",
    "sdxl-style.toml": "sdxl",
    "sd35-style.toml": "sd3",
    "flux-style.toml": "flux-dev",
    "pixart-style.toml": "pixart-sigma",
    "sana-style.toml": "sana",
    "flux2-klein-style.toml": "flux2-klein",
    "qwen-image-style.toml": "qwen-image",
    "z-image-style.toml": "z-image",
    "lumina2-style.toml": "lumina2",
    "cogview4-style.toml": "cogview4",
    "ovis-image-style.toml": "ovis-image",
    "wan-style.toml": "wan",
    "wan22-style.toml": "wan-14b",
    "ltx-style.toml": "ltx",
    "ltx-image-to-video.toml": "ltx-i2v",
    "wan22-5b-image-to-video.toml": "wan-i2v-5b",
    "hunyuan-video15-style.toml": "hunyuan-video-1.5",
    "stable-audio-style.toml": "stable-audio",
    "flux-kontext-edit.toml": "flux-kontext",
    "qwen-image-edit.toml": "qwen-image-edit-plus",
}
# Its prediction is proven in tests/training/test_two_experts.py.
WAN22 = Case("wan-14b", wan.make_14b, height=32, width=48, frames=9)


def test_every_preset_is_tried():
    assert {path.name for path in EXAMPLES.glob("*.toml")} == {*PRESETS, "emoji-style.toml"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_and_draws(preset, image_folder, tmp_path, monkeypatch):
    case = next(case for case in [*CASES, WAN22] if case.name == PRESETS[preset])
    case.patch(monkeypatch)
    pipe = case.pipeline()
    if preset == "sd15-style.toml":
        pipe.register_modules(scheduler=DDIMScheduler())  # the released model's noise process; the tiny one is of flow
    pipe.save_pretrained(tmp_path / "base")
    side = case.height
    changes = {
        "base": tmp_path / "base",
        "output_dir": tmp_path / "run",
        "data.train_data_dir": image_folder,
        "data.resolution": side,
        "data.enable_bucket": "false",
        "train.steps": 2,
        "train.lr_warmup_steps": 1,
        "train.mixed_precision": "no",
        "validation.num_inference_steps": 1,
        "validation.loss_samples": 2,
    }
    if case.frames:
        changes |= {"data.train_data_dir": clip_folder(tmp_path / "clips"), "validation.num_frames": case.frames}
        changes |= {"data.num_frames": case.frames, "data.frame_rate": 16}  # that of the clips
    if case.given:
        (tmp_path / "clips" / "e.png").unlink()
    if case.seconds:
        changes |= {"data.train_data_dir": sound_folder(tmp_path / "sounds", 8000, case.seconds)}
        changes |= {"data.seconds": case.seconds, "validation.seconds": case.seconds}
        changes = {
            name: value for name, value in changes.items() if name not in ("data.resolution", "data.enable_bucket")
        }
    if case.sources:
        changes |= {"data.source_path": image_folder, "validation.sources": image_folder / "0.png"}
    flags = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    assert main(["train", str(EXAMPLES / preset), *flags]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["held_out_loss_after"] is not None
    draws = load_config(EXAMPLES / preset).validation.prompts != []
    assert (tmp_path / "run" / "samples" / "step-000002.png").is_file() == draws
    assert open_adapter(tmp_path / "run" / "adapter").config.router_input == "shares+timestep"
