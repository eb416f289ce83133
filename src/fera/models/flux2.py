"""FLUX.2: dev, and Klein, which is told no guidance."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, places, unpack
from fera.models.pictures import block_standardized
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "Flux2Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        # Single-stream blocks fuse what goes in. Their `to_out` cannot be named by its end: others' are containers.
        (*JOINT_ATTENTION, "to_qkv_mlp_proj"),
        timestep_range=FRACTION,
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline"),
    ),
)

_TIMESTEPS = 1000
# What a guidance-distilled transformer is told while it learns; 1 is what LoRA trainers settled on.
_GUIDANCE = 1.0


def flux2(pipe: Any) -> Family:
    """FLUX.2: latents are standardized as blocks of 2 x 2 pixels, and packed block by block into tokens."""
    call = {"guidance_scale": _GUIDANCE}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        packing=2,
        latents=_latents,
        encodes_alone=True,
        call=call,
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return block_standardized(vae, pixels, vae.config.batch_norm_eps)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, _, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    text = conditions["encoder_hidden_states"]
    image_ids = torch.zeros(rows * columns, 4, device=noisy.device, dtype=torch.long)
    image_ids[:, :3] = places(rows, columns, image_ids)
    text_ids = torch.zeros(text.shape[1], 4, device=noisy.device, dtype=torch.long)
    text_ids[:, 3] = torch.arange(text.shape[1], device=noisy.device)
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        timestep=timesteps / _TIMESTEPS,
        guidance=torch.full((batch,), _GUIDANCE, device=noisy.device) if config.guidance_embeds else None,
        encoder_hidden_states=text,
        txt_ids=text_ids.expand(batch, -1, -1),
        img_ids=image_ids.expand(batch, -1, -1),
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("Flux2KleinPipeline", flux2, "FLUX.2 Klein")
add_family("Flux2Pipeline", flux2, "FLUX.2")
