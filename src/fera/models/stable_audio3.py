"""Stable Audio 3."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import FRACTION, Denoiser, add
from fera.models.sound import Sound, channels_first, encoded_sound

# Its attention fuses queries, keys and values, those of the text without the queries.
_TARGETS = ("to_qkv", "to_q", "to_kv", "to_out")

add(
    "StableAudio3DiTModel",
    Denoiser(
        "hidden_states",
        channels_first,
        _TARGETS,
        beside=("ff.proj_in", "ff.proj_out"),
        timestep_range=FRACTION,
        pipelines=("StableAudio3Pipeline",),
    ),
)

# That training counts; the denoiser is told noise levels as they are.
_TIMESTEPS = 1000
_CONDITIONS = ("encoder_hidden_states", "global_hidden_states", "encoder_attention_mask")


def stable_audio3(pipe: Any) -> Family:
    """Stable Audio 3: it is told how long the sound is. What is released as "base" takes guidance, the others none."""
    rate, stride = int(pipe.vae.config.sampling_rate), int(pipe.vae.downsampling_ratio)

    def encode(pipe: Any, captions: list[str], seconds: float, device: torch.device) -> dict[str, Tensor]:
        return reader(named(*_CONDITIONS), guidance_scale=1.0, duration=seconds)(pipe, captions, device)

    return Family(
        ("tokenizer", "text_encoder", "duration_embedder"),
        lambda pipe, captions, device: encode(pipe, captions, 10.0, device),
        _predict,
        latents=encoded_sound,
        sound=Sound(
            rate,
            int(pipe.vae.config.audio_channels),
            stride,
            _longest(pipe),
            "duration",
            lambda seconds: math.ceil(seconds * rate / stride),
            encode,
            told=True,
        ),
    )


def _longest(pipe: Any) -> float:
    """Seconds; longer ones it is told alike."""
    return float(pipe.duration_embedder.config.max_val)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        noisy,
        (timesteps / _TIMESTEPS).to(noisy.dtype),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        global_hidden_states=conditions["global_hidden_states"],
        encoder_attention_mask=conditions["encoder_attention_mask"].long(),
        return_dict=False,
    )[0]
    return prediction


add_family("StableAudio3Pipeline", stable_audio3, "Stable Audio 3")
