"""Ideogram 4."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, places, unpack
from fera.models.pictures import encoded
from fera.models.registry import Denoiser, add

_TIMESTEPS = 1000
# Of the tokens in one sequence: what they are, and to which picture they belong.
_IMAGE, _TEXT = 2, 3
_PADDING, _OWN = -1, 1
# Places of the picture begin there, behind those of any caption.
_START = 65536


def _by_channel(tokens: Tensor) -> Tensor:
    """Tokens of 2 x 2 pixels, each with all its channels, as tokens of channels, each with all its pixels."""
    return tokens.unflatten(2, (4, -1)).transpose(2, 3).flatten(2)


def _by_pixel(tokens: Tensor) -> Tensor:
    """The way back of `_by_channel`."""
    return tokens.unflatten(2, (-1, 4)).transpose(2, 3).flatten(2)


def _behind_text(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, L, 4 C), 2 x 2 pixels a token behind those of the text, with their places in `position_ids`."""
    tokens = _by_channel(latent)
    return layouts.packed_by_ids(denoiser, tokens, arguments, ids="position_ids", drawn=_START)


add(
    "Ideogram4Transformer2DModel",
    Denoiser(
        "hidden_states",
        _behind_text,
        beside=("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        timestep_range=(1.0, 0.0),
        pipelines=("Ideogram4Pipeline",),
    ),
)


def ideogram4(pipe: Any) -> Family:
    """Ideogram 4: FLUX.2's latents in one sequence with the text.

    Its time runs from noise to picture, its velocity too. Its pipeline has a second transformer for pictures without a
    caption, which is left as it is.
    """
    call = {"guidance_scale": 1.0, "guidance_schedule": None}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        packing=2,
        latents=_latents,
        encodes_alone=True,
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    """The states of a caption alone: its pipeline puts thousands of empty ones before them."""
    text = arguments["encoder_hidden_states"][arguments["indicator"] == _TEXT][None]
    return {"encoder_hidden_states": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """By the statistics of the autoencoder's batch norm, which count pixels first."""
    latents = encoded(vae, pixels).float()
    deviation = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt()
    tokens = (_by_pixel(pack(latents)) - vae.bn.running_mean.float()) / deviation
    height, width = (side // 2 for side in latents.shape[2:])
    return unpack(_by_channel(tokens), height, width)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // 2 for side in noisy.shape[2:])
    text, mask = conditions["encoder_hidden_states"], conditions["mask"].bool()
    tokens = _by_pixel(pack(noisy))
    batch, count, length = len(noisy), rows * columns, text.shape[1]
    words = torch.arange(length, device=noisy.device)[:, None].expand(-1, 3)
    pixels = places(rows, columns, words) + _START
    of_image = mask.new_ones(batch, count)
    prediction: Tensor = denoiser(
        hidden_states=torch.cat([tokens.new_zeros(batch, length, tokens.shape[2]), tokens], dim=1),
        timestep=(1 - timesteps / _TIMESTEPS).to(noisy.dtype),
        encoder_hidden_states=torch.cat([text, text.new_zeros(batch, count, text.shape[2])], dim=1),
        position_ids=torch.cat([words, pixels]).expand(batch, -1, -1),
        segment_ids=torch.where(torch.cat([mask, of_image], dim=1), _OWN, _PADDING),
        indicator=torch.cat([mask * _TEXT, of_image * _IMAGE], dim=1),
        return_dict=False,
    )[0]
    return -unpack(_by_channel(prediction[:, length:]), rows, columns)


add_family("Ideogram4Pipeline", ideogram4, "Ideogram 4")
