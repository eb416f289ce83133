"""Stable Diffusion 1 and 2, SDXL, Stable Diffusion 3."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.models import layouts
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import AS_THEY_ARE, LatentUnits, shifted, standardized
from fera.models.pairs import Pairs, one_picture, picture_and_mask, sources_of
from fera.models.placement import Placement
from fera.models.prompts import prompt_settings, with_empty
from fera.models.registry import CONVOLUTIONS, JOINT_ATTENTION, JOINT_FEED_FORWARD, Denoiser, add

add(
    "UNet2DConditionModel",
    Denoiser(
        "sample",
        layouts.own_channels,
        beside=CONVOLUTIONS,
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLInstructPix2PixPipeline",
            "KolorsPipeline",
            "KandinskyV22InpaintPipeline",
        ),
    ),
)

add(
    "SD3Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        JOINT_ATTENTION,
        beside=JOINT_FEED_FORWARD,
        pipelines=("StableDiffusion3Pipeline",),
    ),
)

_NO_HOLE = (
    "this UNet inpaints by noise alone, and is told nothing of the hole: train it for text to image, as what it is, "
    "and inpaint with the adapter"
)
_BOTH = ("text_encoder", "text_encoder_2")


def sd(pipe: Any) -> Family:
    """Stable Diffusion 1 and 2."""
    return Family(("tokenizer", "text_encoder"), _encode_sd, _predict, clip=("text_encoder",))


def inpaint(pipe: Any) -> Family:
    """Inpainting by a UNet of its own: to the latent it appends the hole and the picture with its hole blank."""
    refusal = _NO_HOLE if pipe.unet.config.in_channels == pipe.vae.config.latent_channels else ""
    parts = ("tokenizer", "text_encoder")
    pairs = Pairs(picture_and_mask, hole=True)
    return Family(parts, _encode_sd, _predict_filled, clip=("text_encoder",), pairs=pairs, refusal=refusal)


def instruct_pix2pix(pipe: Any) -> Family:
    """InstructPix2Pix: to the latent it appends that of the source, which is not scaled."""
    parts = ("tokenizer", "text_encoder")
    pairs = Pairs(one_picture, units=_unscaled)
    return Family(parts, _encode_pix2pix, _predict_edited, clip=("text_encoder",), pairs=pairs)


def sd3(pipe: Any) -> Family:
    """Stable Diffusion 3 and 3.5."""
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3")
    return Family(
        parts,
        _encode_sd3,
        _predict,
        clip=_BOTH,
        reads={"text_encoder_3": None},
        encode_part={_BOTH: _encode_sd3_clip, ("text_encoder_3",): _encode_sd3_t5},
        units=shifted,
    )


def sdxl_inpaint(pipe: Any) -> Family:
    """SDXL inpainting by a UNet of its own; unless told otherwise, its pipeline leaves a trace of what was there."""
    family = sdxl(pipe)
    refusal = _NO_HOLE if pipe.unet.config.in_channels == pipe.vae.config.latent_channels else ""
    return replace(family, pairs=Pairs(picture_and_mask, hole=True), call={"strength": 1.0}, refusal=refusal)


def sdxl_instruct_pix2pix(pipe: Any) -> Family:
    """InstructPix2Pix of SDXL."""
    # A pipeline's folder does not say that it is one of these, which scale the source: it would be trained as another.
    refusal = "a CosXL Edit is not saved as one, and would be drawn otherwise" if pipe.is_cosxl_edit else ""
    return replace(sdxl(pipe), pairs=Pairs(one_picture, units=_unscaled), refusal=refusal)


def _unscaled(vae: Any) -> LatentUnits:
    return AS_THEY_ARE


def sdxl(pipe: Any) -> Family:
    """SDXL. It is told a picture's own size, where it was cropped, and the size it is trained at.

    Where these are not known, they are those of a picture of the trained size, as its pipeline tells it.
    """
    scale = int(pipe.vae_scale_factor)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        height, width = (side * scale for side in noisy.shape[2:])
        whole = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(noisy), -1)
        sizes = conditions.get("time_ids", whole).to(noisy)
        added = {"text_embeds": conditions["text_embeds"], "time_ids": sizes}
        text = conditions["encoder_hidden_states"]
        if "hole" in conditions:
            latents = _filled(noisy, conditions)
        else:
            latents = torch.cat([noisy, *(source.to(noisy) for source in sources_of(conditions))], dim=1)
        prediction: Tensor = denoiser(
            latents, timesteps, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return Family(parts, _encode_sdxl, predict, clip=_BOTH, placed=_placed_sdxl, units=standardized)


def _encode_sd(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipe.encode_prompt(captions, device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds}


def _encode_pix2pix(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe._encode_prompt(captions, device, 1, False)}


def _encode_sdxl(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, empty, pooled, empty_pooled = pipe.encode_prompt(
        captions, device=device, do_classifier_free_guidance="" in captions
    )
    return {
        "encoder_hidden_states": with_empty(captions, embeds, empty),
        "text_embeds": with_empty(captions, pooled, empty_pooled),
    }


def _placed_sdxl(placement: Placement) -> dict[str, tuple[float, ...]]:
    """As diffusers' scripts for SDXL: height before width, top before left."""
    corner = (placement.top, placement.left)
    return {"time_ids": (*placement.original[::-1], *corner, *placement.size[::-1])}


def _encode_sd3(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions,
        prompt_2=None,
        prompt_3=None,
        device=device,
        do_classifier_free_guidance=False,
        **prompt_settings(pipe),
    )
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _encode_sd3_clip(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    """CLIP makes the pooled embeddings, and the first rows of the others; the rest are T5's."""
    encoded = [pipe._get_clip_prompt_embeds(captions, device=device, clip_model_index=index) for index in range(2)]
    rows, pooled = (torch.cat(parts, dim=-1) for parts in zip(*encoded, strict=True))
    text = conditions["encoder_hidden_states"]
    wide = functional.pad(rows, (0, text.shape[-1] - rows.shape[-1])).to(text.dtype)
    return {
        "encoder_hidden_states": torch.cat([wide, text[:, rows.shape[1] :]], dim=1),
        "pooled_projections": pooled,
    }


def _encode_sd3_t5(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    """T5 makes the last rows."""
    text = conditions["encoder_hidden_states"]
    rows = pipe._get_t5_prompt_embeds(captions, device=device, dtype=text.dtype, **prompt_settings(pipe))
    return {"encoder_hidden_states": torch.cat([text[:, : -rows.shape[1]], rows], dim=1)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(noisy, timestep=timesteps, return_dict=False, **conditions)[0]
    return prediction


def _predict_filled(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    return _predict_told(denoiser, _filled(noisy, conditions), timesteps, conditions)


def _filled(noisy: Tensor, conditions: Conditions) -> Tensor:
    """The latent, the hole at its size, and the picture with its hole blank."""
    hole = functional.interpolate(conditions["hole"], size=noisy.shape[2:])
    return torch.cat([noisy, hole.to(noisy), conditions["source_0"].to(noisy)], dim=1)


def _predict_edited(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    latents = torch.cat([noisy, conditions["source_0"].to(noisy)], dim=1)
    return _predict_told(denoiser, latents, timesteps, conditions)


def _predict_told(denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """With a latent to which conditions are appended, and with the text."""
    return _predict(denoiser, latents, timesteps, {"encoder_hidden_states": conditions["encoder_hidden_states"]})


add_family("StableDiffusionPipeline", sd, "Stable Diffusion 1, 2")
add_family("StableDiffusionXLPipeline", sdxl, "SDXL")
add_family("StableDiffusion3Pipeline", sd3, "Stable Diffusion 3, 3.5")
add_family("StableDiffusionInpaintPipeline", inpaint, "Stable Diffusion inpainting")
add_family("StableDiffusionInstructPix2PixPipeline", instruct_pix2pix, "InstructPix2Pix")
add_family("StableDiffusionXLInpaintPipeline", sdxl_inpaint, "SDXL inpainting")
add_family("StableDiffusionXLInstructPix2PixPipeline", sdxl_instruct_pix2pix, "InstructPix2Pix of SDXL")
