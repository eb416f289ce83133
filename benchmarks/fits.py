"""What fits: memory that the weights of full-size models take, by how they are held, without any weight.

    python -m benchmarks.fits

prints the table of docs/memory.md. Shapes are those of diffusers' defaults, which for these classes are the models that
they were written for, and of `full_models` for the UNets.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn

from benchmarks.full_models import SD15, SDXL
from fera.config import AdapterConfig, OptimizationConfig
from fera.pipelines.memory import Held, ways_to_hold
from fera.preflight.costs import bytes_a_trained_parameter
from fera.training.trained.kinds import adapter_of

_DTYPE = torch.bfloat16
# Of a card, what weights may take: the rest is for activations, the allocator and the driver.
_SHARE = 0.75
CARDS = (8, 12, 16, 24)
# Quantization and offload of each way, and what the table calls it.
WAYS = {
    ("none", "none"): "as it is",
    ("8bit", "none"): "8 bits",
    ("4bit", "none"): "4 bits",
    ("none", "blocks"): "blocks wait",
    ("4bit", "blocks"): "4 bits, blocks wait",
}


def _default(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(diffusers, name)()  # type: ignore[no-any-return]


def _unet(config: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: diffusers.UNet2DConditionModel.from_config(config)  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "PixArt-Σ": _default("PixArtTransformer2DModel"),
    "Stable Diffusion 1.5": _unet(SD15),
    "Sana 1.6B": _default("SanaTransformer2DModel"),
    "LTX-Video 2B": _default("LTXVideoTransformer3DModel"),
    "SDXL": _unet(SDXL),
    "Lumina-Image 2": _default("Lumina2Transformer2DModel"),
    "Z-Image": _default("ZImageTransformer2DModel"),
    "Ovis-Image": _default("OvisImageTransformer2DModel"),
    "Chroma": _default("ChromaTransformer2DModel"),
    "FLUX.1": _default("FluxTransformer2DModel"),
    "HunyuanVideo": _default("HunyuanVideoTransformer3DModel"),
    "Wan 14B": _default("WanTransformer3DModel"),
    "Qwen-Image": _default("QwenImageTransformer2DModel"),
    "FLUX.2 dev": _default("Flux2Transformer2DModel"),
}


def rows() -> list[list[str]]:
    """A row a model: its name, parameters, adapter, memory of each way, and the first way that fits each card."""
    found = []
    for name, build in MODELS.items():
        with torch.device("meta"):
            denoiser: Any = build()
            count = sum(weight.numel() for weight in denoiser.parameters())
            ways = ways_to_hold(denoiser, _DTYPE)
            adapter_of(AdapterConfig(kappa=1 / 128), None).add(denoiser)
        trained = sum(weight.numel() for weight in denoiser.parameters() if weight.requires_grad)
        training = trained * bytes_a_trained_parameter(OptimizationConfig())
        found.append(
            [
                name,
                f"{count / 1e9:.2g} billion",
                _gigabytes(training),
                *(_gigabytes(way.device_bytes + training) for way in ways if way.offload != "disk"),
                *(_first(ways, training, card) for card in CARDS),
            ]
        )
    return found


def table() -> str:
    """The table as Markdown."""
    head = ["model", "parameters", "adapter", *WAYS.values(), *(f"{card} GB" for card in CARDS)]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _first(ways: list[Held], training: int, card: int) -> str:
    for way in ways:
        if way.offload != "disk" and way.device_bytes + training <= _SHARE * card * 1e9:
            return WAYS[way.quantization, way.offload]
    return "no"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e9 else f"{count / 1e9:.1f} GB"


if __name__ == "__main__":
    print(table(), end="")
