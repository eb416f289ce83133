"""OmniGen: captions and references are tokens beside the latent."""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models import layouts
from fera.models.conditions import together
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.pairs import Pairs, Size
from fera.models.registry import Denoiser, add

add(
    "OmniGenTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        beside=("mlp.gate_up_proj", "mlp.down_proj"),
        timestep_range=(1.0, 0.0),  # it counts how clean a latent is
        pipelines=("OmniGenPipeline",),
    ),
)

_TIMESTEPS = 1000
# Pixels a side that become one token.
_TOKEN = 16
# The pipeline scales references down whose longer side has more pixels.
_MOST_SIDE = 1024
# How many it is said to be made for.
_MOST_SOURCES = 3
_TAG = re.compile(r"<\|image_(\d+)\|>")


def omnigen(pipe: Any) -> Family:
    """OmniGen: its transformer reads the words itself, so that their numbers are what is cached."""
    return Family(
        ("tokenizer",),
        _encode,
        _predict,
        encodes_alone=True,
        call={"guidance_scale": 1.0},
        pairs=Pairs(
            lambda sources, mask, size: {"input_images": list(sources)},
            least=0,
            most=_MOST_SOURCES,
            size=_size,
            encode=_encode_with,
            prompt=_naming,
        ),
    )


def _size(own: Size, picture: Size, drawn: Size) -> Size:
    scale = min(1.0, _MOST_SIDE / max(own))
    width, height = (max(_TOKEN, round(side * scale) // _TOKEN * _TOKEN) for side in own)
    return width, height


def _naming(prompt: str, count: int) -> str:
    """A prompt that names all its references: those of one that names none stand before it.

    Raises:
        FeraError: it names others.
    """
    named = {int(number) for number in _TAG.findall(prompt)}
    if not named and count:
        return f"{_tags(count)} {prompt}".rstrip()
    if named != {*range(1, count + 1)}:
        raise FeraError(
            f"{prompt!r} names other references than it has, {count}: name each, as in <img><|image_1|></img>, or none"
        )
    return prompt


def _tags(count: int) -> str:
    return " ".join(f"<img><|image_{number}|></img>" for number in range(1, count + 1))


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    return _encode_with(pipe, captions, (), device)


def _encode_with(pipe: Any, captions: list[str], sources: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    """Numbers of words, as int32: they are never rounded; a token of the first reference is -1, of the second -2.

    The empty caption is what the pipeline guides away from, or the references alone.
    """
    processor = pipe.multimodal_processor
    absent = inspect.signature(type(processor).__call__).parameters["negative_prompt"].default
    pictures = [torch.empty(3, source.height, source.width, device="meta") for source in sources]
    texts = []
    for caption in captions:
        prompt = _naming(caption, len(sources)) if caption or sources else absent
        read = processor.process_multi_modal_prompt(prompt, pictures or None)
        words = torch.tensor(read["input_ids"], dtype=torch.int32, device=device)
        for number, (start, end) in zip(_TAG.findall(prompt), read["image_sizes"] or (), strict=bool(sources)):
            words[start:end] = -int(number)
        texts.append({"input_ids": words, "mask": torch.ones(len(words), device=device)})
    return together(texts)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Shorter captions are moved to the right, as the pipeline has them; the prediction leads to the picture."""
    config: Any = denoiser.config
    mask = conditions["mask"].bool()
    length, missing = mask.shape[1], mask.shape[1] - mask.sum(dim=1)
    behind = (torch.arange(length, device=noisy.device) - missing[:, None]) % length
    words = conditions["input_ids"].gather(1, behind)
    drawn = (noisy.shape[2] // config.patch_size) * (noisy.shape[3] // config.patch_size)
    seen = _seen(missing, length, drawn)
    latents: list[Tensor] = []
    places: dict[int, list[list[int]]] = {}
    for row, number, start, end in _references(words):
        latents.append(conditions[f"source_{number}"][row : row + 1])
        places.setdefault(row, []).append([start, end])
        seen[row, start:end, start:end] = 1
    prediction: Tensor = denoiser(
        noisy,
        1 - timesteps / _TIMESTEPS,
        input_ids=words.clamp(min=0),
        input_img_latents=latents,
        input_image_sizes=places,
        attention_mask=seen,
        # diffusers takes those of the first sample for all. What counts is how far tokens are apart.
        position_ids=torch.arange(length + 1 + drawn, device=noisy.device).expand(len(noisy), -1),
        return_dict=False,
    )[0]
    return -prediction


def _references(words: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """The row, the number from 0, and the first and last place of each reference's tokens."""
    for row, line in enumerate(words.cpu()):
        place = 0
        for value, count in zip(*torch.unique_consecutive(line, return_counts=True), strict=True):
            if value < 0:
                yield row, -int(value) - 1, place, place + int(count)
            place += int(count)


def _seen(missing: Tensor, length: int, drawn: int) -> Tensor:
    """Which token sees which, (B, L, L): words and the time those before them, the picture everything but padding."""
    place = torch.arange(length + 1 + drawn, device=missing.device)
    row, column = place[:, None], place[None, :]
    is_padding = place < missing[:, None]
    sees = (column <= row) | (row > length)
    return ((sees & ~is_padding[:, None, :]) | is_padding[:, :, None]).float()


add_family("OmniGenPipeline", omnigen, "OmniGen")
