"""PixArt-α and PixArt-Σ."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.prompts import prompt_settings
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "PixArtTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        beside=FEED_FORWARD,
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    ),
)


def pixart(pipe: Any) -> Family:
    """PixArt. The large models of α are told size and aspect, as their pipeline tells them."""
    scale = int(pipe.vae_scale_factor)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        config: Any = denoiser.config
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        # As the pipeline decides it.
        if type(pipe).__name__ == "PixArtAlphaPipeline" and config.sample_size == 128:
            height, width = (side * scale for side in noisy.shape[2:])
            added = {
                "resolution": torch.tensor([[height, width]]).to(noisy).expand(len(noisy), -1),
                "aspect_ratio": torch.tensor([[height / width]]).to(noisy).expand(len(noisy), -1),
            }
        prediction: Tensor = denoiser(
            noisy, timestep=timesteps, added_cond_kwargs=added, return_dict=False, **conditions
        )[0]
        # It may predict a variance too, in as many channels.
        return prediction[:, : noisy.shape[1]]

    return Family(("tokenizer", "text_encoder"), _encode, predict, reads={"text_encoder": None})


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, mask, *_ = pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, device=device, **prompt_settings(pipe)
    )
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


add_family("PixArtAlphaPipeline", pixart, "PixArt-α")
add_family("PixArtSigmaPipeline", pixart, "PixArt-Σ")
