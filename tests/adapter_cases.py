"""What the tests of pipelines and files share: tiny pipelines with adapters whose every weight counts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from tiny import make_sd3_pipeline, make_sd_pipeline
from torch import Tensor, nn
from tuner_cases import fill

import fera
from fera import FeraConfig

PIPELINES = {"sd": make_sd_pipeline, "sd3": make_sd3_pipeline}
COMPONENTS = {"sd": "unet", "sd3": "transformer"}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PROMPTS = ["a red rocket", "a green tree"]


def make_pipeline(kind: str) -> Any:
    pipe = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def add_adapter(pipe: Any, name: str = "default", seed: int = 0, **settings: Any) -> Any:
    """Put an adapter into a pipeline as training would leave it."""
    config = FeraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": TARGETS} | settings)
    inject_adapter_in_model(config, denoiser_of(pipe), name)
    fill(denoiser_of(pipe), seed, name)
    return pipe


def write_adapter(kind: str, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """The folder of a saved adapter."""
    fera.save_adapter(add_adapter(make_pipeline(kind), "default", seed, **settings), folder)
    return folder


def draw(pipe: Any, prompts: Sequence[str] = PROMPTS, guidance: float = 1.0, steps: int = 2, seed: int = 0) -> Tensor:
    """Latents that a pipeline draws, each from its own seed, shape (N, 4, 8, 8)."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    # Of one precision whatever the pipeline's is: up to PyTorch 2.10 a seed draws other noise in half precision.
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        latents=noise.to(pipe.dtype),
        output_type="latent",
    ).images


def bits(module: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether names and weights are equal, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
