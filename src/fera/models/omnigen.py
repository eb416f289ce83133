"""OmniGen: captions and references are tokens beside the latent."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import together
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add

add(
    "OmniGenTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        timestep_range=(1.0, 0.0),  # it counts how clean a latent is
        pipelines=("OmniGenPipeline",),
    ),
)

_TIMESTEPS = 1000


def omnigen(pipe: Any) -> Family:
    """OmniGen from texts: its transformer reads the words itself, so that their numbers are what is cached."""
    return Family(("tokenizer",), _encode, _predict, encodes_alone=True, call={"guidance_scale": 1.0})


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    """Numbers of words, as int32: they are never rounded. The empty caption is what the pipeline guides away from."""
    processor = pipe.multimodal_processor
    absent = inspect.signature(type(processor).__call__).parameters["negative_prompt"].default
    texts = []
    for caption in captions:
        words = processor.process_multi_modal_prompt(caption or absent, None)["input_ids"]
        ids = torch.tensor(words, dtype=torch.int32, device=device)
        texts.append({"input_ids": ids, "mask": torch.ones(len(words), device=device)})
    return together(texts)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Shorter captions are moved to the right, as the pipeline has them; the prediction leads to the picture."""
    config: Any = denoiser.config
    mask = conditions["mask"].bool()
    length, missing = mask.shape[1], mask.shape[1] - mask.sum(dim=1)
    behind = (torch.arange(length, device=noisy.device) - missing[:, None]) % length
    drawn = (noisy.shape[2] // config.patch_size) * (noisy.shape[3] // config.patch_size)
    prediction: Tensor = denoiser(
        noisy,
        1 - timesteps / _TIMESTEPS,
        input_ids=conditions["input_ids"].gather(1, behind),
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=_seen(missing, length, drawn),
        # diffusers takes those of the first sample for all. What counts is how far tokens are apart.
        position_ids=torch.arange(length + 1 + drawn, device=noisy.device).expand(len(noisy), -1),
        return_dict=False,
    )[0]
    return -prediction


def _seen(missing: Tensor, length: int, drawn: int) -> Tensor:
    """Which token sees which, (B, L, L): words and the time those before them, the picture everything but padding."""
    place = torch.arange(length + 1 + drawn, device=missing.device)
    row, column = place[:, None], place[None, :]
    is_padding = place < missing[:, None]
    sees = (column <= row) | (row > length)
    return ((sees & ~is_padding[:, None, :]) | is_padding[:, :, None]).float()


add_family("OmniGenPipeline", omnigen, "OmniGen")
