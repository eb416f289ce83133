"""Pipelines with text encoders, and adapters with parts in them whose every weight counts."""

from pathlib import Path
from typing import Any

import torch
from adapter_cases import TARGETS
from family_cases import FAMILY_CASES
from peft import inject_adapter_in_model
from torch import Tensor
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.adapters.text.encoders import text_encoders
from fera.adapters.text.kinds import target_paths
from fera.adapters.text.lora import add_lora, lora_layers
from fera.adapters.text.tokens import add_token
from fera.models.components import denoisers

KINDS = ("sd", "sdxl", "sd3", "flux")
TOKEN = "<toy>"
PROMPTS = ["a red rocket", f"a {TOKEN} rocket"]


def make_pipeline(kind: str) -> Any:
    pipe = FAMILY_CASES[kind][0]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_text_adapter(pipe: Any, name: str = "default", token: str | None = TOKEN, vectors: int = 1) -> Any:
    """Put an adapter with LoRA and a token in every text encoder into a pipeline, as training would leave it."""
    denoiser = next(iter(denoisers(pipe).values()))
    inject_adapter_in_model(FeraConfig(r=2, target_modules=TARGETS), denoiser, name)
    fill(denoiser, 1, name)
    generator = torch.Generator().manual_seed(5)
    for encoder, module in text_encoders(pipe).items():
        add_lora(module, name, 2, 4.0, target_paths(module, None), inference=True)
        for layer in lora_layers(module, name).values():
            for matrix in (layer.lora_A[name].weight, layer.lora_B[name].weight):
                matrix.data = 0.3 * torch.randn(matrix.shape, generator=generator)
        if token is not None:
            add_token(pipe, encoder, name, token, torch.randn(vectors, _width(module), generator=generator))
        module.eval()
    denoiser.eval()
    return pipe


def _width(encoder: Any) -> int:
    return int(encoder.get_input_embeddings().weight.shape[1])


def write_text_adapter(kind: str, folder: Path, **settings: Any) -> Path:
    fera.save_adapter(add_text_adapter(make_pipeline(kind), **settings), folder)
    return folder


def draw(kind: str, pipe: Any, prompts: list[str] = PROMPTS) -> Tensor:
    """Latents that a pipeline draws in two steps, each from its own seed."""
    call = {key: value for key, value in FAMILY_CASES[kind][1].items() if key == "guidance_scale"}
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(
        list(prompts), num_inference_steps=2, generator=generators, output_type="latent", height=16, width=16, **call
    ).images
