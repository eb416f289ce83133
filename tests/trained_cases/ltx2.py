"""LTX-2."""

import json
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2Vocoder
from models import ltx2
from pytest import MonkeyPatch
from tiny import make_t5
from tiny_texts import make_gemma2

from trained_cases.case import Case


def make_pipeline(pipeline: Any = LTX2Pipeline) -> Any:
    """Its text encoder is 32 wide, of which three layers are read; each channel has statistics of its own."""
    parts = ltx2.make_pipeline().components
    parts["vae"].latents_mean.copy_(torch.linspace(-0.5, 0.5, 4))
    parts["vae"].latents_std.copy_(torch.linspace(0.5, 2, 4))
    texts = {"caption_channels": 32, "text_proj_in_factor": 3}
    heads = {"video_connector_attention_head_dim": 16, "audio_connector_attention_head_dim": 16}
    torch.manual_seed(5)
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    parts |= {
        "text_encoder": make_gemma2(),
        "tokenizer": make_t5()[1],
        "connectors": ltx2.make_connectors(**texts | heads),
        "transformer": ltx2.make_transformer(caption_channels=32),
        "vocoder": vocoder.eval(),
    }
    return pipeline(**parts)


def make_image_to_video() -> LTX2ImageToVideoPipeline:
    """The given frame is the latent's first one."""
    return make_pipeline(LTX2ImageToVideoPipeline)


def apart(monkeypatch: MonkeyPatch) -> None:
    """The pipeline draws a video and its sound, which look at each other; training keeps them apart."""
    forward = LTX2VideoTransformer3DModel.forward

    @wraps(forward)
    def isolated(self: LTX2VideoTransformer3DModel, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs | {"isolate_modalities": True})

    monkeypatch.setattr(LTX2VideoTransformer3DModel, "forward", isolated)


def release(folder: Path) -> None:
    """The scheduler by the name of its releases; the test's own steps the sound with another copy."""
    for path in (folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"):
        settings = json.loads(path.read_text())
        if "scheduler" in settings:
            settings["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        else:
            settings["_class_name"] = "FlowMatchEulerDiscreteScheduler"
        path.write_text(json.dumps(settings))


CASES = [
    Case("ltx2", make_pipeline, height=32, width=64, frames=5, patch=apart, repair=release),
    Case(
        "ltx2-i2v",
        make_image_to_video,
        {"image_crf": 0},
        height=32,
        width=64,
        frames=5,
        given=1,
        patch=apart,
        repair=release,
        variant=True,
    ),
]
