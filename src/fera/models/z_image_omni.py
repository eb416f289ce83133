"""Z-Image Omni: from a caption and references, which stand before the picture and are seen by a vision encoder too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.pairs import Pairs, Size, of_area, sources_of
from fera.models.prompts import prompt_settings
from fera.models.z_image import TIMESTEPS, z_image

# The pipeline scales larger references down to so many pixels.
_MOST_PIXELS = 1024 * 1024
# It takes none with a shorter side, in pixels.
_LEAST_SIDE = 64
# How many it is said to be made for.
_MOST_SOURCES = 3


def z_image_omni(pipe: Any) -> Family:
    """Z-Image Omni. Words before, between and behind references are texts of their own, told one after the other."""
    multiple = 2 * int(pipe.vae_scale_factor)

    def size(own: Size, picture: Size, drawn: Size) -> Size:
        is_large = own[0] * own[1] > _MOST_PIXELS
        width, height = of_area(own, drawn[0] * drawn[1], 1) if is_large else own
        return max(_LEAST_SIDE, width // multiple * multiple), max(_LEAST_SIDE, height // multiple * multiple)

    return replace(
        z_image(pipe),
        encode=_encode_unseen,
        predict=_predict,
        pairs=Pairs(
            _arguments,
            least=0,
            most=_MOST_SOURCES,
            size=size,
            encode=_encode,
            see=_see,
            eyes=("siglip", "siglip_processor"),
        ),
    )


def _arguments(sources: Sequence[Any], mask: Any, size: Size | None) -> dict[str, Any]:
    return {"image": list(sources)}


def _encode_unseen(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    raise FeraError(f"a {type(pipe).__name__} reads captions together with their references")


def _encode(pipe: Any, captions: list[str], sources: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    """Tokens of all texts one after the other, with the number of the text that each is of, counted from 1."""
    texts, _ = pipe.encode_prompt(
        list(captions),
        device=device,
        do_classifier_free_guidance=False,
        num_condition_images=len(sources),
        **prompt_settings(pipe),
    )
    (parts,) = texts
    numbers = [torch.full((len(part),), number, device=device) for number, part in enumerate(parts, start=1)]
    return {"cap_feats": torch.cat(list(parts))[None], "part": torch.cat(numbers)[None]}


def _see(pipe: Any, sources: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    (seen,) = pipe.prepare_siglip_embeds(list(sources), 1, device, pipe.siglip.dtype)
    return {f"seen_{number}": features[None] for number, features in enumerate(seen)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    sources = sources_of(conditions)
    count = len(sources)
    seen = [conditions[f"seen_{number}"] for number in range(count)]
    predictions = denoiser(
        x=[[*(source[row, :, None] for source in sources), noisy[row, :, None]] for row in range(len(noisy))],
        t=1 - timesteps / TIMESTEPS,
        cap_feats=[_texts(text, part) for text, part in zip(conditions["cap_feats"], conditions["part"], strict=True)],
        siglip_feats=[[*(features[row] for features in seen), None] if count else None for row in range(len(noisy))],
        image_noise_mask=[[0] * count + [1]] * len(noisy),
        return_dict=False,
    )[0]
    return -torch.stack(list(predictions)).squeeze(2)


def _texts(tokens: Tensor, part: Tensor) -> list[Tensor]:
    """Tokens of each text; the number 0 is of padding."""
    return [tokens[part == number] for number in range(1, int(part.max()) + 1)]


add_family("ZImageOmniPipeline", z_image_omni, "Z-Image Omni")
