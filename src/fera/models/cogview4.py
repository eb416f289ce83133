"""CogView 4."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.lengths import each_length
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "CogView4Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, beside=FEED_FORWARD, pipelines=("CogView4Pipeline",)),
)

_TIMESTEPS = 1000


def cogview4(pipe: Any) -> Family:
    """CogView 4: told sizes; captions of unequal length without a mask.

    Its scheduler shifts noise levels by the size of the picture, its denoiser is told the timestep before that shift.
    """
    call = {"guidance_scale": 1.0}
    scale = int(pipe.vae_scale_factor)
    schedule: Any = pipe.scheduler.config

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        height, width = noisy.shape[2:]
        config: Any = denoiser.config
        factor = _shift(schedule, (height // config.patch_size) * (width // config.patch_size))
        level = timesteps.float() / _TIMESTEPS
        unshifted = level / (level + factor * (1 - level))
        size = torch.tensor([[height * scale, width * scale]]).to(noisy).repeat(len(noisy), 1)
        prediction: Tensor = denoiser(
            hidden_states=noisy,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            timestep=unshifted * _TIMESTEPS,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            return_dict=False,
        )[0]
        return prediction

    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        each_length(predict),
        encodes_alone=True,
        reads={"text_encoder": None},
        call=call,
        units=shifted,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["encoder_hidden_states"]
    return {"encoder_hidden_states": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _shift(schedule: Any, tokens: int) -> float:
    """Factor by which the scheduler favours noise for a picture of so many tokens."""
    if not schedule.use_dynamic_shifting:
        return float(schedule.shift)
    growth = (tokens / schedule.get("base_image_seq_len", 256)) ** 0.5
    mu = growth * schedule.get("max_shift", 0.75) + schedule.get("base_shift", 0.25)
    return float(math.exp(mu) if schedule.get("time_shift_type", "exponential") == "exponential" else mu)


add_family("CogView4Pipeline", cogview4, "CogView 4")
