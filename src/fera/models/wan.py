"""Wan: text to video, and image to video."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import between, first_latent, given
from fera.models.pairs import Pairs
from fera.models.previews import first_frame
from fera.models.prompts import prompt_settings
from fera.models.registry import Denoiser, add
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_behind_channels

add(
    "WanTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ffn.net.0.proj", "ffn.net.2"),
        pipelines=("WanPipeline", "WanImageToVideoPipeline"),
    ),
)
add(
    "WanVACETransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ffn.net.0.proj", "ffn.net.2"),
        pipelines=("WanVACEPipeline",),
    ),
)
add(
    "WanAnimateTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ffn.net.0.proj", "ffn.net.2"),
        pipelines=("WanAnimatePipeline",),
    ),
)
add(
    "WanAnimate2Transformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.listed_videos,
        beside=("ffn.0", "ffn.2"),
        pipelines=("WanAnimate2ModularPipeline",),
    ),
)

# The area of its smaller videos, as a square.
_RESOLUTION = 640
_ODD = "this Wan has a second transformer, but its pipeline says nothing of when to use it (boundary_ratio)"


def wan(pipe: Any) -> Family:
    """Wan 2.1 and 2.2: the latter with two transformers (14B), or with one that is told a timestep a token (5B)."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    expands = bool(pipe.config.expand_timesteps)
    boundary = pipe.config.boundary_ratio
    has_two = pipe.transformer is not None and pipe.transformer_2 is not None

    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict_by_token if expands else predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTION,
        latents=latents_of,
        preview=first_frame,
        video=Video(int(pipe.vae_scale_factor_temporal), 24.0 if expands else 16.0),
        reads={"text_encoder": None},
        call=call,
        ranges={"transformer": (boundary, 1.0), "transformer_2": (0.0, boundary)} if has_two and boundary else {},
        refusal=_ODD if pipe.transformer_2 is not None and not boundary else "",
    )


def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """The prediction of a denoiser that is called as Wan's; as `Family.predict`."""
    prediction: Tensor = denoiser(
        hidden_states=frames_behind_channels(denoiser, noisy),
        timestep=timesteps,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        return_dict=False,
    )[0]
    return folded(prediction)


def _predict_by_token(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Told a timestep a token, (B, T L)."""
    config: Any = denoiser.config
    tokens = frames_behind_channels(denoiser, noisy)[0, 0].numel() // (config.patch_size[1] * config.patch_size[2])
    return predict(denoiser, noisy, timesteps[:, None].expand(-1, tokens), conditions)


def latents_of(vae: Any, pixels: Tensor) -> Tensor:
    """Clean latents by Wan's autoencoder; as `Family.latents`."""
    return folded(by_channel(encoded_clip(vae, pixels), vae.config.latents_mean, vae.config.latents_std))


def wan_image_to_video(pipe: Any) -> Family:
    """Wan 2.1 and 2.2 that are given the first frame, or the first and the last: as channels behind the latent's.

    Of the 5B model the given frame is the latent's first one, and its tokens have timestep 0.
    """
    base = wan(pipe)
    expands = bool(pipe.config.expand_timesteps)
    return replace(
        base,
        encode=encode_texts,
        predict=_predict_after_frame if expands else predict_with_frames,
        latents=_latents_after_frame if expands else latents_of,
        preview=None if expands else first_frame,
        pairs=given(_first_of) if expands else frames_as_channels(pipe),
        call={"guidance_scale": 1.0},
        refusal=base.refusal or missing_package(pipe),
    )


def frames_as_channels(pipe: Any) -> Pairs:
    """How Wan 2.1 and its relatives are given frames. What CLIP sees has places for two pictures, or for one."""
    config = (pipe.transformer or pipe.transformer_2).config
    sees, takes_two = config.image_dim is not None, config.pos_embed_seq_len is not None
    return given(
        frames_of,
        last="last_image" if takes_two or not sees else "",
        least=2 if takes_two else 1,
        see=see if sees else None,
        eyes=("image_encoder", "image_processor") if sees else (),
    )


def missing_package(pipe: Any) -> str:
    """Why captions cannot be encoded by pipelines that clean prompts with ftfy; empty where it is there."""
    if find_spec("ftfy") is not None:
        return ""
    return f"a {type(pipe).__name__} cleans prompts with ftfy, which is not installed: pip install ftfy"


def encode_texts(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    """Captions by the pipeline's own function; as `Family.encode`."""
    settings = prompt_settings(pipe)
    texts = pipe.encode_prompt(captions, do_classifier_free_guidance=False, device=device, **settings)[0]
    return {"encoder_hidden_states": texts}


def see(pipe: Any, frames: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    """Given frames as CLIP sees them, (1, L, C): one after the other; as `Pairs.see`."""
    return {"encoder_hidden_states_image": pipe.encode_image(list(frames), device).flatten(0, 1)[None]}


def frames_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    """A mask of which frames are given, one channel a frame, and the latent of a clip without the others."""
    latents = by_channel(encoded_clip(vae, between(frames, count)), vae.config.latents_mean, vae.config.latents_std)
    mask = latents.new_zeros(len(latents), count, *latents.shape[3:])
    mask[:, 0] = 1
    mask[:, count - 1] = len(frames) > 1
    stride = (count - 1) // (latents.shape[2] - 1)
    mask = torch.cat([mask[:, :1].expand(-1, stride - 1, -1, -1), mask], dim=1)  # a latent frame of its own
    return folded(torch.cat([mask.unflatten(1, (-1, stride)).transpose(1, 2), latents], dim=1))


def predict_with_frames(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """As `predict`, with what `frames_of` gives behind the latent."""
    latents = frames_behind_channels(denoiser, noisy)
    told = conditions["source_0"].unflatten(1, (-1, latents.shape[2]))
    config: Any = denoiser.config
    seen = conditions.get("encoder_hidden_states_image")
    if seen is not None and config.pos_embed_seq_len is not None:
        seen = seen.unflatten(1, (2, -1)).flatten(0, 1)
    prediction: Tensor = denoiser(
        hidden_states=torch.cat([latents, told], dim=1),
        timestep=timesteps,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_hidden_states_image=seen,
        return_dict=False,
    )[0]
    return folded(prediction)


def _first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    return folded(by_channel(first_latent(vae, frames), vae.config.latents_mean, vae.config.latents_std))


def _latents_after_frame(vae: Any, pixels: Tensor) -> Tensor:
    latents = by_channel(encoded_clip(vae, pixels), vae.config.latents_mean, vae.config.latents_std)
    return folded(latents[:, :, 1:])


def _predict_after_frame(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Told a timestep a token, (B, T L), 0 on those of the given frame."""
    config: Any = denoiser.config
    latents = torch.cat([conditions["source_0"][:, :, None], frames_behind_channels(denoiser, noisy)], dim=2)
    height, width = (pixels // side for pixels, side in zip(latents.shape[3:], config.patch_size[1:], strict=True))
    is_drawn = torch.arange(latents.shape[2], device=noisy.device).repeat_interleave(height * width) > 0
    prediction: Tensor = denoiser(
        hidden_states=latents,
        timestep=timesteps[:, None] * is_drawn,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        return_dict=False,
    )[0]
    return folded(prediction[:, :, 1:])


add_family("WanPipeline", wan, "Wan 2.1, 2.2")
add_family("WanImageToVideoPipeline", wan_image_to_video, "Wan 2.1, 2.2 image to video")
