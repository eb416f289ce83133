"""Kolors."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted


def kolors(pipe: Any) -> Family:
    """Kolors: SDXL's UNet with a language model for its text. It is told the size of a picture, uncropped."""
    call = {"guidance_scale": 1.0}
    scale = int(pipe.vae_scale_factor)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        height, width = (side * scale for side in noisy.shape[2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device, dtype=noisy.dtype)
        added = {"text_embeds": conditions["text_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
        prediction: Tensor = denoiser(
            noisy,
            timesteps,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return prediction

    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        predict,
        reads={"text_encoder": None},
        call=call,
        units=shifted,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": arguments["encoder_hidden_states"],
        "text_embeds": arguments["added_cond_kwargs"]["text_embeds"],
    }


add_family("KolorsPipeline", kolors, "Kolors")
