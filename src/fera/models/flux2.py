"""FLUX.2: dev, and Klein, which is told no guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, places, unpack
from fera.models.pairs import Pairs, Size, of_area, sources_of
from fera.models.pictures import block_standardized
from fera.models.previews import from_blocks
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "Flux2Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        # Single-stream blocks fuse what goes in.
        (*JOINT_ATTENTION, "to_qkv_mlp_proj"),
        # By more than its end: the `to_out` of other blocks are containers.
        beside=(
            "ff.linear_in",
            "ff.linear_out",
            "ff_context.linear_in",
            "ff_context.linear_out",
            "single_transformer_blocks.*.attn.to_out",
        ),
        timestep_range=FRACTION,
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline"),
    ),
)

_TIMESTEPS = 1000
# What a guidance-distilled transformer is told while it learns; 1 is what LoRA trainers settled on.
_GUIDANCE = 1.0
# The pipeline scales larger sources down to so many pixels.
_MOST_PIXELS = 1024 * 1024
# Between the first ids of two pictures.
_APART = 10
# The model's page speaks of up to ten.
_MOST_SOURCES = 10


def flux2(pipe: Any) -> Family:
    """FLUX.2: latents are standardized as blocks of 2 x 2 pixels, and packed block by block into tokens."""
    call = {"guidance_scale": _GUIDANCE}
    multiple = 2 * int(pipe.vae_scale_factor)

    def size(own: Size, picture: Size, drawn: Size) -> Size:
        area = min(own[0] * own[1], _MOST_PIXELS)
        width, height = of_area(own, area, 1)
        return max(1, width // multiple) * multiple, max(1, height // multiple) * multiple

    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        packing=2,
        latents=_latents,
        preview=from_blocks,
        encodes_alone=True,
        pairs=Pairs(_arguments, least=0, most=_MOST_SOURCES, size=size),
        call=call,
    )


def _arguments(sources: Sequence[Any], mask: Any, size: Size | None) -> dict[str, Any]:
    return {"image": list(sources)}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return block_standardized(vae, pixels, vae.config.batch_norm_eps)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, _, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    text = conditions["encoder_hidden_states"]
    tokens, image_ids = [pack(noisy)], [_places(rows, columns, 0, noisy.device)]
    for number, source in enumerate(sources_of(conditions), start=1):
        tokens.append(pack(source))
        image_ids.append(_places(source.shape[2] // 2, source.shape[3] // 2, _APART * number, noisy.device))
    text_ids = torch.zeros(text.shape[1], 4, device=noisy.device, dtype=torch.long)
    text_ids[:, 3] = torch.arange(text.shape[1], device=noisy.device)
    prediction: Tensor = denoiser(
        hidden_states=torch.cat(tokens, dim=1),
        timestep=timesteps / _TIMESTEPS,
        guidance=torch.full((batch,), _GUIDANCE, device=noisy.device) if config.guidance_embeds else None,
        encoder_hidden_states=text,
        txt_ids=text_ids.expand(batch, -1, -1),
        img_ids=torch.cat(image_ids).expand(batch, -1, -1),
        return_dict=False,
    )[0]
    return unpack(prediction[:, : rows * columns], rows, columns)


def _places(rows: int, columns: int, picture: int, device: torch.device) -> Tensor:
    """Ids of a picture's tokens: (which picture, row, column, 0)."""
    ids = torch.zeros(rows * columns, 4, device=device, dtype=torch.long)
    ids[:, :3] = places(rows, columns, ids)
    ids[:, 0] = picture
    return ids


add_family("Flux2KleinPipeline", flux2, "FLUX.2 Klein")
add_family("Flux2Pipeline", flux2, "FLUX.2")
