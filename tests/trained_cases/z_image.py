"""Z-Image."""

from typing import Any

import torch
from diffusers import ZImageOmniPipeline, ZImagePipeline
from models import z_image
from pytest import MonkeyPatch
from tiny import make_vae
from tiny_texts import make_qwen3, make_tokenizer
from torch import Tensor

from trained_cases.case import Case


def make_pipeline() -> ZImagePipeline:
    """Captions differ in length."""
    parts = z_image.make_pipeline().components
    return ZImagePipeline(**parts | {"text_encoder": make_qwen3(2, width=32), "tokenizer": make_tokenizer()})


def make_omni() -> ZImageOmniPipeline:
    """A vision encoder sees references too."""
    parts = z_image.make_omni_pipeline().components
    texts = {"text_encoder": make_qwen3(2, width=32), "tokenizer": make_tokenizer()}
    return ZImageOmniPipeline(**parts | texts | {"vae": make_vae(shift_factor=0.1)})


def exact(monkeypatch: MonkeyPatch) -> None:
    """The pipeline encodes references in bfloat16, whatever its autoencoder is; training does in float32."""

    def prepare(pipe: Any, images: list[Tensor], batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        means = [pipe.vae.encode(image.to(device)).latent_dist.mode()[0] for image in images]
        config = pipe.vae.config
        return [[((mean - config.shift_factor) * config.scaling_factor)[:, None] for mean in means]] * batch_size

    monkeypatch.setattr(ZImageOmniPipeline, "prepare_image_latents", prepare)


CASES = [
    Case("z-image", make_pipeline),
    Case("z-image-omni", make_omni, sources=((64, 80), (96, 64)), patch=exact),
]
