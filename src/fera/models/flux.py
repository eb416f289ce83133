"""FLUX.1."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.models import layouts
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.packing import pack, places, unpack
from fera.models.pairs import Pairs, Size, of_area, picture_and_mask, same_shape, sources_of
from fera.models.prompts import prompt_settings
from fera.models.registry import FRACTION, JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

add(
    "FluxTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        timestep_range=FRACTION,
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxFillPipeline",
            "FluxKontextPipeline",
            "FluxControlPipeline",
        ),
    ),
)

_TIMESTEPS = 1000
# What a guidance-distilled transformer is told while it learns; 1 is what LoRA trainers settled on.
_GUIDANCE = 1.0


def flux(pipe: Any, pairs: Pairs | None = None) -> Family:
    """FLUX.1, dev and schnell: latents are packed two by two into tokens."""
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return Family(
        parts,
        _encode,
        _predict,
        packing=2,
        clip=("text_encoder",),
        reads={"text_encoder_2": None},
        encode_part={("text_encoder",): _encode_clip, ("text_encoder_2",): _encode_t5},
        units=shifted,
        pairs=pairs,
    )


def kontext(pipe: Any) -> Family:
    """FLUX.1 Kontext: the tokens of a source come behind those of the picture."""
    multiple = 2 * int(pipe.vae_scale_factor)

    def size(own: Size, picture: Size, drawn: Size) -> Size:
        return drawn if same_shape(own, picture) else of_area(own, drawn[0] * drawn[1], multiple)

    def arguments(sources: Sequence[Any], mask: Any, drawn: Size | None) -> dict[str, Any]:
        # At the sizes that are asked for: the pipeline would stretch both to a million pixels.
        own = {} if drawn is None else {"max_area": drawn[0] * drawn[1], "_auto_resize": False}
        return {"image": sources[0], **own}

    return flux(pipe, Pairs(arguments, size=size))


def control(pipe: Any) -> Family:
    """FLUX.1 Control (Canny, Depth): to each token it appends that of the source at the same place."""
    return flux(pipe, Pairs(lambda sources, mask, drawn: {"control_image": sources[0]}))


def fill(pipe: Any) -> Family:
    """FLUX.1 Fill: to each token it appends those of the picture with its hole blank, and the hole's pixels."""
    return flux(pipe, Pairs(picture_and_mask, hole=True))


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(captions, None, device=device, **prompt_settings(pipe))
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _encode_clip(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    """CLIP makes the pooled embeddings alone; the others are T5's."""
    return {"pooled_projections": pipe._get_clip_prompt_embeds(captions, device=device)}


def _encode_t5(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    dtype = conditions["encoder_hidden_states"].dtype  # by default that of CLIP
    embeds = pipe._get_t5_prompt_embeds(captions, device=device, dtype=dtype, **prompt_settings(pipe))
    return {"encoder_hidden_states": embeds}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, channels, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    tokens, ids = pack(noisy), places(rows, columns, noisy)
    if "hole" in conditions:
        tokens = torch.cat([tokens, pack(conditions["source_0"]), pack(_hole(conditions["hole"], noisy))], dim=2)
    elif config.in_channels == 2 * tokens.shape[2]:
        tokens = torch.cat([tokens, pack(conditions["source_0"])], dim=2)
    else:
        for source in sources_of(conditions):
            there = places(source.shape[2] // 2, source.shape[3] // 2, noisy)
            there[:, 0] = 1
            tokens, ids = torch.cat([tokens, pack(source)], dim=1), torch.cat([ids, there])
    text = conditions["encoder_hidden_states"]
    prediction: Tensor = denoiser(
        hidden_states=tokens,
        timestep=timesteps / _TIMESTEPS,
        guidance=torch.full((batch,), _GUIDANCE, device=noisy.device) if config.guidance_embeds else None,
        pooled_projections=conditions["pooled_projections"],
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        img_ids=ids,
        return_dict=False,
    )[0]
    return unpack(prediction[:, : rows * columns], rows, columns)


def _hole(hole: Tensor, noisy: Tensor) -> Tensor:
    """The hole's pixels as channels of latent pixels, shape (B, s s, h, w) for s pixels a latent pixel."""
    return functional.pixel_unshuffle(hole, hole.shape[2] // noisy.shape[2]).to(noisy.dtype)


add_family("FluxPipeline", flux, "FLUX.1")
add_family("FluxKontextPipeline", kontext, "FLUX.1 Kontext")
add_family("FluxControlPipeline", control, "FLUX.1 Control")
add_family("FluxFillPipeline", fill, "FLUX.1 Fill")
