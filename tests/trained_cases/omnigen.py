"""OmniGen."""

from typing import Any

import torch
from diffusers import OmniGenPipeline
from models import omnigen
from pytest import MonkeyPatch
from torch import Tensor

from trained_cases.case import Case


def exact(monkeypatch: MonkeyPatch) -> None:
    """The pipeline draws a reference's latent from what its autoencoder says of it; training takes the mean."""

    def encode(pipe: Any, pixels: list[Tensor], device: torch.device | None = None, dtype: Any = None) -> list[Tensor]:
        scale = pipe.vae.config.scaling_factor
        return [pipe.vae.encode(picture.to(device)).latent_dist.mode() * scale for picture in pixels]

    monkeypatch.setattr(OmniGenPipeline, "encode_input_images", encode)


CASES = [
    Case("omnigen", omnigen.make_pipeline, height=32, width=64),
    Case(
        "omnigen-references",
        omnigen.make_pipeline,
        {"img_guidance_scale": 1.0},
        height=32,
        width=64,
        sources=((32, 48), (32, 32)),
        variant=True,
        patch=exact,
    ),
]
