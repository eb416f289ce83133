"""LongCat-AudioDiT."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add
from fera.models.sound import Sound, channels_last

add(
    "LongCatAudioDiTTransformer",
    Denoiser(
        "hidden_states",
        channels_last,
        beside=("ffn.ff.0", "ffn.ff.3"),
        timestep_range=(1.0, 0.0),  # it counts how clean a latent is
        pipelines=("LongCatAudioDiTPipeline",),
    ),
)


def longcat_audio(pipe: Any) -> Family:
    """LongCat-AudioDiT: its time runs from noise to sound, its velocity too."""
    rate, stride = int(pipe.sample_rate), int(pipe.vae_scale_factor)
    steps = int(pipe.scheduler.config.num_train_timesteps)
    # Shorter than a frame of the latent: the caption alone is wanted.
    read = reader(named("encoder_hidden_states", "encoder_attention_mask"), guidance_scale=1.0, audio_duration_s=0.0)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        latent = noisy.transpose(1, 2)
        prediction: Tensor = denoiser(
            hidden_states=latent,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            encoder_attention_mask=conditions["encoder_attention_mask"].bool(),
            timestep=(1 - timesteps / steps).to(noisy.dtype),
            attention_mask=torch.ones(latent.shape[:2], dtype=torch.bool, device=noisy.device),
            latent_cond=torch.zeros_like(latent),
            return_dict=False,
        )[0]
        return -prediction.transpose(1, 2)

    def encode(pipe: Any, captions: list[str], seconds: float, device: torch.device) -> dict[str, Tensor]:
        return read(pipe, captions, device)

    return Family(
        ("tokenizer", "text_encoder"),
        read,
        predict,
        latents=_latents,
        no_checkpointing="diffusers has no gradient checkpointing for LongCat-AudioDiT",
        sound=Sound(
            rate,
            int(pipe.vae.config.in_channels),
            stride,
            float(pipe.max_wav_duration),
            "audio_duration_s",
            lambda seconds: max(1, int(seconds * rate // stride)),
            encode,
        ),
    )


def _latents(vae: Any, samples: Tensor) -> Tensor:
    """Without the draw that its autoencoder makes by default."""
    latents: Tensor = vae.encode(samples, sample_posterior=False).latents
    return latents.float()


add_family("LongCatAudioDiTPipeline", longcat_audio, "LongCat-AudioDiT")
