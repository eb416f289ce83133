"""Stable Audio: Stable Audio Open 1.0."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import FEED_FORWARD, FRACTION, Denoiser, add
from fera.models.sound import Sound, encoded_sound

add(
    "StableAudioDiTModel",
    # The timestep is an angle, as a part of a right one.
    Denoiser(
        "hidden_states",
        layouts_video.sound,
        beside=FEED_FORWARD,
        timestep_range=FRACTION,
        pipelines=("StableAudioPipeline",),
    ),
)


def stable_audio(pipe: Any) -> Family:
    """Stable Audio. Its latent has one length, and it is told which part of it is sound."""
    rate, stride, length = int(pipe.vae.config.sampling_rate), int(pipe.vae.hop_length), _length(pipe)
    longest = length * stride / rate

    def encode(pipe: Any, captions: list[str], seconds: float, device: torch.device) -> dict[str, Tensor]:
        call = {"guidance_scale": 1.0, "audio_end_in_s": seconds}
        return reader(named("encoder_hidden_states", "global_hidden_states"), **call)(pipe, captions, device)

    return Family(
        ("tokenizer", "text_encoder", "projection_model"),
        lambda pipe, captions, device: encode(pipe, captions, longest, device),
        _predict,
        latents=encoded_sound,
        sound=Sound(
            rate,
            int(pipe.vae.config.audio_channels),
            stride,
            longest,
            "audio_end_in_s",
            lambda seconds: length,
            encode,
            told=True,
        ),
    )


def _length(pipe: Any) -> int:
    """Frames of its latent."""
    return int(pipe.transformer.config.sample_size)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    durations = conditions["global_hidden_states"]
    prediction: Tensor = denoiser(
        noisy,
        timesteps.to(noisy.dtype),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        global_hidden_states=durations,
        rotary_embedding=_rotary(denoiser, noisy.shape[2] + durations.shape[1]),
        return_dict=False,
    )[0]
    return prediction


def _rotary(denoiser: nn.Module, length: int) -> Any:
    """Of the places of latent and duration, as the pipeline makes them."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    config: Any = denoiser.config
    half = config.attention_head_dim // 2
    return get_1d_rotary_pos_embed(half, length, use_real=True, repeat_interleave_real=False)


add_family("StableAudioPipeline", stable_audio, "Stable Audio")
