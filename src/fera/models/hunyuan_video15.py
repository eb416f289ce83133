"""HunyuanVideo 1.5: text to video."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import JOINT_ATTENTION, Denoiser, add
from fera.models.video import Video, encoded_clip, folded, frames_behind_channels

add(
    "HunyuanVideo15Transformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    ),
)

# Frames a second that it has learned.
_FRAME_RATE = 24.0


def hunyuan_video15(pipe: Any) -> Family:
    """HunyuanVideo 1.5: channels of a given frame and of a mask are zeros, and so is what would be seen of it.

    The strength of guidance is a setting of its `guider`, which is a part of the pipeline.
    """
    call = {"num_frames": 1}
    seen = (int(pipe.vision_num_semantic_tokens), int(pipe.vision_states_dim))

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        latents = frames_behind_channels(denoiser, noisy)
        prediction: Tensor = denoiser(
            hidden_states=torch.cat([latents, torch.zeros_like(latents), torch.zeros_like(latents[:, :1])], dim=1),
            timestep=timesteps.to(noisy.dtype),
            image_embeds=noisy.new_zeros(len(noisy), *seen),
            return_dict=False,
            **{name: conditions[name] for name in names},
        )[0]
        return folded(prediction)

    texts = ("encoder_hidden_states", "encoder_attention_mask")
    names = (*texts, *(f"{name}_2" for name in texts))
    return Family(
        ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
        reader(named(*names), **call),
        predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=int(pipe.target_size),
        latents=_latents,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        guidance=None,
        call=call,
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_clip(vae, pixels)) * float(vae.config.scaling_factor)


add_family("HunyuanVideo15Pipeline", hunyuan_video15, "HunyuanVideo 1.5")
