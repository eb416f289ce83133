"""Z-Image."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts, rows
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.registry import Denoiser, add

add(
    "ZImageTransformer2DModel",
    Denoiser(
        "x",
        layouts.listed,
        beside=("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        timestep="t",
        timestep_range=(1.0, 0.0),
        pipelines=("ZImagePipeline", "ZImageOmniPipeline"),
        rows={
            "all_x_embedder": rows.picture_patches,
            "cap_embedder": rows.caption_tokens,
            "siglip_embedder": rows.vision_tokens,
        },
    ),
)

TIMESTEPS = 1000


def z_image(pipe: Any) -> Family:
    """Z-Image: lists of pictures and of captions, its time runs from noise to picture, its velocity too."""
    call = {"guidance_scale": 0.0}  # of the difference to the negative prompt, on top
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        packing=2,
        encodes_alone=True,
        call=call,
        units=shifted,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    (text,) = arguments["cap_feats"]
    return {"cap_feats": text[None], "mask": torch.ones(1, len(text), device=text.device)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    texts = zip(conditions["cap_feats"], conditions["mask"].bool(), strict=True)
    predictions = denoiser(
        list(noisy[:, :, None]),
        1 - timesteps / TIMESTEPS,
        [text[mask] for text, mask in texts],
        return_dict=False,
    )[0]
    return -torch.stack(list(predictions)).squeeze(2)


add_family("ZImagePipeline", z_image, "Z-Image")
