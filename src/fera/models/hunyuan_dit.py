"""Hunyuan-DiT."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts, rows
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "HunyuanDiT2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        beside=FEED_FORWARD,
        pipelines=("HunyuanDiTPipeline",),
        rows={"text_embedder": partial(rows.text_tokens, name="encoder_hidden_states_t5")},
    ),
)

_TEXT = ("encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5")
# What the pipeline says of every picture: the size that it had before it was scaled.
_ORIGINAL_SIZE = (1024, 1024)
_SCALE = 8
_BASE_SIDE = 512


def hunyuan_dit(pipe: Any) -> Family:
    """Hunyuan-DiT. It is told sizes and a style; rotary embeddings are stretched to those of 512 pixels."""
    call = {"guidance_scale": 1.0, "use_resolution_binning": False}
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return Family(
        parts,
        reader(named(*_TEXT), **call),
        _predict,
        reads={"text_encoder": 77, "text_encoder_2": 256},
        encode_part={("text_encoder",): partial(_encode_part, 0), ("text_encoder_2",): partial(_encode_part, 1)},
        call=call,
        no_checkpointing="diffusers has no gradient checkpointing for Hunyuan-DiT",
        units=shifted,
    )


def _encode_part(
    index: int, pipe: Any, captions: list[str], device: torch.device, conditions: Conditions
) -> dict[str, Tensor]:
    """What BERT makes, or T5."""
    embeds, _, mask, _ = pipe.encode_prompt(
        captions,
        device=device,
        dtype=pipe.transformer.dtype,
        do_classifier_free_guidance=False,
        text_encoder_index=index,
    )
    states, masks = _TEXT[2 * index : 2 * index + 2]
    return {states: embeds, masks: mask}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, channels, height, width = noisy.shape
    sizes = torch.tensor([*_ORIGINAL_SIZE, height * _SCALE, width * _SCALE, 0, 0]).to(noisy)
    prediction: Tensor = denoiser(
        noisy,
        timesteps.to(noisy.dtype),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        text_embedding_mask=conditions["text_embedding_mask"].long(),
        encoder_hidden_states_t5=conditions["encoder_hidden_states_t5"],
        text_embedding_mask_t5=conditions["text_embedding_mask_t5"].long(),
        image_meta_size=sizes.repeat(batch, 1),
        style=torch.zeros(batch, device=noisy.device, dtype=torch.long),
        image_rotary_emb=_rotary(height // config.patch_size, width // config.patch_size, config, noisy.device),
        return_dict=False,
    )[0]
    # It predicts a variance too.
    return prediction[:, :channels]


def _rotary(rows: int, columns: int, config: Any, device: torch.device) -> Any:
    """Of the grid of patches, scaled into a square of the base's size as the pipeline does it."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    region = get_resize_crop_region_for_grid((rows, columns), _BASE_SIDE // _SCALE // config.patch_size)
    return get_2d_rotary_pos_embed(config.attention_head_dim, region, (rows, columns), device=device, output_type="pt")


add_family("HunyuanDiTPipeline", hunyuan_dit, "Hunyuan-DiT")
