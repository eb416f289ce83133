"""Lumina-Next."""

import math
from typing import Any

from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add

add(
    "LuminaNextDiT2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        beside=("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
        timestep_range=(1.0, 0.0),  # it counts how clean a latent is
        pipelines=("LuminaPipeline",),
    ),
)

_TIMESTEPS = 1000
# Of a caption that its text encoder reads.
_TOKENS = 256
# Rows and columns for which its pipeline computes rotary embeddings.
_PLACES = 384


def lumina(pipe: Any) -> Family:
    """Lumina-Next: told how clean a latent is; places are stretched with the picture, as its pipeline does it."""
    call = {"guidance_scale": 1.0}
    native = int(pipe.default_image_size)
    side = int(pipe.vae_scale_factor)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

        model: Any = denoiser
        height, width = (pixels * side for pixels in noisy.shape[2:])
        stretch = math.sqrt(width * height / native**2)
        rotary = get_2d_rotary_pos_embed_lumina(model.head_dim, _PLACES, _PLACES, linear_factor=stretch)
        prediction: Tensor = denoiser(
            hidden_states=noisy,
            timestep=1 - timesteps / _TIMESTEPS,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            encoder_mask=conditions["encoder_mask"],
            image_rotary_emb=rotary,
            cross_attention_kwargs={"base_sequence_length": (native // 16) ** 2},
            return_dict=False,
        )[0]
        return -prediction.chunk(2, dim=1)[0]  # without the variance, and from noise to the picture

    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        predict,
        reads={"text_encoder": _TOKENS},
        call=call,
        no_checkpointing="diffusers 0.42 cannot compute this transformer's activations again",
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    return {name: arguments[name] for name in ("encoder_hidden_states", "encoder_mask")}


add_family("LuminaPipeline", lumina, "Lumina-Next")
