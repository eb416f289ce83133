"""What training must know about a family of pipelines. One entry a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError

Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class turn captions into conditions and call their denoiser.

    Args:
        text_components: names of the pipeline's parts that make the conditions.
        encode: (pipeline, captions, device) to conditions by name, each with captions along its first axis.
        predict: (denoiser, noisy latents (B, C, H, W), timesteps (B,), conditions) to the prediction, shape
            (B, C, H, W).
    """

    text_components: tuple[str, ...]
    encode: Callable[[Any, list[str], torch.device], dict[str, Tensor]]
    predict: Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]


def family_of(pipe: object) -> Family:
    """The family of a pipeline.

    Raises:
        FeraError: training does not know it.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise FeraError(
        f"fera cannot train a {type(pipe).__name__} yet; it can train: {', '.join(sorted(FAMILIES))}. "
        "Your own training loop can: put a fera.FeraConfig into the denoiser with peft.get_peft_model"
    )


def _encode_sd(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipe.encode_prompt(captions, device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds}


def _encode_sd3(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(
        captions, prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    return denoiser(noisy, timestep=timesteps, return_dict=False, **conditions)[0]


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(("tokenizer", "text_encoder"), _encode_sd, _predict),
    "StableDiffusion3Pipeline": Family(
        ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3"),
        _encode_sd3,
        _predict,
    ),
}
