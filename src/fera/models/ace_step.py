"""ACE-Step 1.5."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.lengths import each_length
from fera.models.registry import FRACTION, Denoiser, add
from fera.models.sound import Sound, channels_last, encoded_sound

add(
    "AceStepTransformer1DModel",
    Denoiser(
        "hidden_states",
        channels_last,
        beside=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        timestep_range=FRACTION,
        pipelines=("AceStepPipeline",),
    ),
)

# That training counts; the denoiser is told noise levels as they are.
_TIMESTEPS = 1000
# What its authors draw at most.
_LONGEST = 600.0


def ace_step(pipe: Any) -> Family:
    """ACE-Step: music without words, whose length its prompt states; beside the latent it is given that of silence."""
    rate, stride = int(pipe.sample_rate), math.prod(pipe.vae.config.downsampling_ratios)

    def encode(pipe: Any, captions: list[str], seconds: float, device: torch.device) -> dict[str, Tensor]:
        return reader(_take, guidance_scale=1.0, audio_duration=seconds)(pipe, captions, device)

    return Family(
        ("tokenizer", "text_encoder", "condition_encoder"),
        lambda pipe, captions, device: encode(pipe, captions, 30.0, device),
        each_length(_predict),
        encodes_alone=True,
        latents=encoded_sound,
        sound=Sound(
            rate,
            int(pipe.vae.config.audio_channels),
            stride,
            _LONGEST,
            "audio_duration",
            lambda seconds: math.ceil(seconds * pipe.latents_per_second),
            encode,
        ),
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["encoder_hidden_states"]
    silence = arguments["context_latents"].chunk(2, dim=2)[0]
    return {
        "encoder_hidden_states": text,
        "mask": torch.ones(text.shape[:2], device=text.device),
        "silence": silence[:, None],  # (B, 1, L, C): no axis of it is taken for that of the text
    }


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    silence = conditions["silence"][:, 0]
    levels = (timesteps / _TIMESTEPS).to(noisy.dtype)
    prediction: Tensor = denoiser(
        hidden_states=noisy.transpose(1, 2),
        timestep=levels,
        timestep_r=levels,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        context_latents=torch.cat([silence, torch.ones_like(silence)], dim=2),  # all of it is to be drawn
        return_dict=False,
    )[0]
    return prediction.transpose(1, 2)


add_family("AceStepPipeline", ace_step, "ACE-Step 1.5")
