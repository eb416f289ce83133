"""Qwen-Image, and its editing by one source picture or by several."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, unpack
from fera.models.pairs import Pairs, Size, of_area, one_picture, sources_of
from fera.models.pictures import standardized
from fera.models.previews import from_standardized
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "QwenImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_shapes,
        JOINT_ATTENTION,
        beside=("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
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

# The pipelines that edit scale every source to so many pixels for the autoencoder, and the one of several sources to so
# many for the text encoder; sides are multiples.
_SOURCE_AREA = 1024 * 1024
_SEEN_AREA = 384 * 384
_MULTIPLE = 32
# What the model was trained with.
_MOST_SOURCES = 3


def qwen_image(pipe: Any) -> Family:
    """Qwen-Image: packed latents of an autoencoder of videos, captions of unequal length."""
    call = {"true_cfg_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        latents=standardized,
        preview=from_standardized,
        encodes_alone=True,
        guidance="true_cfg_scale",
        call=call,
    )


def qwen_image_edit(pipe: Any) -> Family:
    """Qwen-Image-Edit: the text encoder sees the source, and the source's tokens come behind those of the picture."""
    pairs = Pairs(one_picture, size=_source_size, encode=partial(_encode_seen, seen_area=None))
    return _editing(pairs)


def qwen_image_edit_plus(pipe: Any) -> Family:
    """Qwen-Image-Edit of 2509 and later, with several sources, which the text encoder sees smaller."""
    pairs = Pairs(
        lambda sources, mask, size: {"image": list(sources)},
        most=_MOST_SOURCES,
        size=_source_size,
        encode=partial(_encode_seen, seen_area=_SEEN_AREA),
    )
    return _editing(pairs)


def _editing(pairs: Pairs) -> Family:
    return Family(
        ("tokenizer", "text_encoder", "processor"),
        _encode_unseen,
        _predict,
        latents=standardized,
        preview=from_standardized,
        encodes_alone=True,
        pairs=pairs,
        guidance="true_cfg_scale",
        call={"true_cfg_scale": 1.0},
    )


def _source_size(own: Size, picture: Size, drawn: Size) -> Size:
    return of_area(own, _SOURCE_AREA, _MULTIPLE)


def _encode_seen(
    pipe: Any, captions: list[str], sources: Sequence[Any], device: torch.device, seen_area: int | None
) -> dict[str, Tensor]:
    seen = sources if seen_area is None else [one.resize(of_area(one.size, seen_area, _MULTIPLE)) for one in sources]
    text, mask = pipe.encode_prompt(captions, image=list(seen), device=device)
    mask = torch.ones(text.shape[:2], device=text.device) if mask is None else mask
    return {"encoder_hidden_states": text, "mask": mask}


def _encode_unseen(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    raise FeraError(f"a {type(pipe).__name__} reads captions together with their source pictures")


def _take(arguments: Arguments) -> dict[str, Tensor]:
    """The pipeline has no mask for a caption alone; next to a longer one it needs one."""
    text = arguments["encoder_hidden_states"]
    return {"encoder_hidden_states": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, _, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    pictures = [noisy, *sources_of(conditions)]
    prediction: Tensor = denoiser(
        hidden_states=torch.cat([pack(picture) for picture in pictures], dim=1),
        timestep=timesteps / _TIMESTEPS,
        guidance=torch.full((batch,), _GUIDANCE, device=noisy.device) if config.guidance_embeds else None,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_hidden_states_mask=conditions["mask"].bool() if batch > 1 else None,
        img_shapes=[[(1, picture.shape[2] // 2, picture.shape[3] // 2) for picture in pictures]] * batch,
        return_dict=False,
    )[0]
    return unpack(prediction[:, : rows * columns], rows, columns)


add_family("QwenImagePipeline", qwen_image, "Qwen-Image")
add_family("QwenImageEditPipeline", qwen_image_edit, "Qwen-Image-Edit")
add_family("QwenImageEditPlusPipeline", qwen_image_edit_plus, "Qwen-Image-Edit Plus")
