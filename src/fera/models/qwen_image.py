"""Qwen-Image."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, unpack
from fera.models.pictures import standardized
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "QwenImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_shapes,
        JOINT_ATTENTION,
        timestep_range=FRACTION,
        pipelines=(
            "QwenImagePipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageLayeredPipeline",
        ),
    ),
)

_TIMESTEPS = 1000
_GUIDANCE = 1.0


def qwen_image(pipe: Any) -> Family:
    """Qwen-Image: packed latents of an autoencoder of videos, captions of unequal length."""
    call = {"true_cfg_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        latents=standardized,
        encodes_alone=True,
        guidance="true_cfg_scale",
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    """The pipeline has no mask for a caption alone; next to a longer one it needs one."""
    text = arguments["encoder_hidden_states"]
    return {"encoder_hidden_states": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, _, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        timestep=timesteps / _TIMESTEPS,
        guidance=torch.full((batch,), _GUIDANCE, device=noisy.device) if config.guidance_embeds else None,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_hidden_states_mask=conditions["mask"].bool() if batch > 1 else None,
        img_shapes=[[(1, rows, columns)]] * batch,
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("QwenImagePipeline", qwen_image, "Qwen-Image")
