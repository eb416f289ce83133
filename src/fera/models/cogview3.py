"""CogView 3 Plus."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "CogView3PlusTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, beside=FEED_FORWARD, pipelines=("CogView3PlusPipeline",)),
)


def cogview3(pipe: Any) -> Family:
    """CogView 3 Plus: told sizes."""
    call = {"guidance_scale": 1.0}
    scale = int(pipe.vae_scale_factor)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        height, width = noisy.shape[2:]
        size = torch.tensor([[height * scale, width * scale]]).to(noisy).repeat(len(noisy), 1)
        prediction: Tensor = denoiser(
            hidden_states=noisy,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            timestep=timesteps,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            return_dict=False,
        )[0]
        return prediction

    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        predict,
        reads={"text_encoder": None},
        call=call,
        units=shifted,
    )


add_family("CogView3PlusPipeline", cogview3, "CogView 3 Plus")
