"""The table of file formats: how other tools name the tensors of a plain LoRA.

One entry a format. It names the tensors of a `StaticLora`, or says why it cannot hold it; what an entry holds is what
a test loads back.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.export import comfyui, kohya, text_encoders
from fera.export.pair import Pair
from fera.export.static import StaticLora

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        file_name: the file name of the file in a folder.
        holds: what it can hold, for messages.
        refuses: reason why it cannot hold a LoRA, or None.
        tensors: the LoRA's tensors by their names in the format.
        metadata: the metadata of the file, beside what all formats carry.
    """

    file_name: str
    holds: str
    refuses: Callable[[StaticLora], str | None]
    tensors: Callable[[StaticLora], Tensors]
    metadata: Callable[[StaticLora], dict[str, str]]


def encode(lora: StaticLora, name: str) -> tuple[Tensors, dict[str, str]]:
    """A LoRA's tensors and metadata in a format.

    Args:
        lora: the LoRA.
        name: the name of the format, a key of `FORMATS`.

    Raises:
        FeraError: there is no such format, or it cannot hold this LoRA; the message names those that can.
    """
    if name not in FORMATS:
        raise FeraError(f"unknown format {name!r}; there are: {', '.join(FORMATS)}")
    wanted = FORMATS[name]
    if reason := wanted.refuses(lora):
        able = [other for other, entry in FORMATS.items() if entry.refuses(lora) is None]
        raise FeraError(
            f"the format {name} cannot hold the adapter: {reason}. It holds {wanted.holds}. "
            f"Formats that can hold it: {', '.join(able) or 'none'}"
        )
    tensors = {key: tensor.contiguous().clone() for key, tensor in wanted.tensors(lora).items()}
    return tensors, {"format": "pt", **_modelspec(lora), **wanted.metadata(lora)}


def component_of(lora: StaticLora) -> str:
    """Name of the denoiser in a diffusers pipeline, which diffusers' files put before every key."""
    return "unet" if "UNet" in (lora.denoiser or "") else "transformer"


def is_sdxl(lora: StaticLora) -> bool:
    """Whether the base is a UNet with SDXL's embedding of picture sizes.

    A fingerprint samples the base's tensors from the alphabet's start, so it always names the first of them.
    """
    sample = (lora.config.base_fingerprint or {}).get("sample", {})
    return any(name.startswith("add_embedding.") for name in sample)


def _diffusers_refuses(lora: StaticLora) -> str | None:
    import diffusers
    from diffusers.loaders import PeftAdapterMixin

    if lora.denoiser is None:
        return "the adapter does not say which denoiser it belongs to (it has no fingerprint of its base)"
    cls = getattr(diffusers, lora.denoiser, None)
    if cls is None or not issubclass(cls, PeftAdapterMixin):
        return f"diffusers loads no LoRA into a {lora.denoiser}"
    return text_encoders.diffusers_refuses(lora)


def _diffusers_tensors(lora: StaticLora) -> Tensors:
    prefix = component_of(lora)
    return {
        f"{component}.{layer}.lora_{side}.weight": tensor
        for component, layers in {prefix: lora.layers, **text_encoders.read_by_diffusers(lora)}.items()
        for layer, pair in layers.items()
        for side, tensor in (("A", pair.down), ("B", pair.up))
    }


def _diffusers_metadata(lora: StaticLora) -> dict[str, str]:
    """Settings of each `peft.LoraConfig` that loads the file; alpha is the rank in every layer, so the scale is 1."""
    settings = _lora_settings(component_of(lora), lora.layers)
    for encoder, layers in text_encoders.read_by_diffusers(lora).items():
        # Not the whole paths: transformers has two names for some of them.
        targets = sorted({path.rpartition(".")[2] for path in layers})
        settings |= _lora_settings(encoder, layers) | {f"{encoder}.target_modules": targets}
    return {"lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)}


def _lora_settings(component: str, layers: Mapping[str, Pair]) -> dict[str, Any]:
    ranks = {layer: pair.rank for layer, pair in layers.items()}
    rank = max(ranks.values())
    # Anchored, as patterns are matched at the end of a layer's path.
    others = {f"^{layer.replace('.', '[.]')}": own for layer, own in ranks.items() if own != rank}
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }
    return {f"{component}.{key}": value for key, value in settings.items()}


def _kohya_refuses(lora: StaticLora) -> str | None:
    return kohya.refuses(lora.denoiser, list(lora.layers), is_sdxl(lora)) or text_encoders.kohya_refuses(lora)


def _kohya_pairs(lora: StaticLora) -> dict[str, Pair]:
    named = kohya.named(lora.denoiser, lora.layers, is_sdxl(lora))
    return named | kohya.text_named(lora.denoiser, lora.text, is_sdxl(lora))


def _kohya_tensors(lora: StaticLora) -> Tensors:
    return _with_alpha(_kohya_pairs(lora))


def _with_alpha(pairs: Mapping[str, Pair]) -> Tensors:
    # One alpha for the whole file, as trainers write it; what it would change in layers of other ranks is taken back.
    alpha = max(pair.rank for pair in pairs.values())
    tensors: Tensors = {}
    for name, pair in pairs.items():
        tensors[f"{name}.lora_down.weight"] = pair.down
        tensors[f"{name}.lora_up.weight"] = pair.up * (pair.rank / alpha)
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha), dtype=pair.up.dtype)
    return tensors


def _kohya_metadata(lora: StaticLora) -> dict[str, str]:
    pairs = _kohya_pairs(lora)
    rank = max(pair.rank for pair in pairs.values())
    version = kohya.base_version(lora.denoiser, lora.layers, is_sdxl(lora))
    return {
        "ss_v2": str(version == "sd_v2"),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora_flux" if lora.denoiser == kohya.FLUX else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }


def _comfyui_refuses(lora: StaticLora) -> str | None:
    if lora.denoiser == kohya.UNET:
        return text_encoders.kohya_refuses(lora)
    return comfyui.refuses(lora.denoiser, list(lora.layers)) or text_encoders.comfyui_refuses(lora)


def _comfyui_tensors(lora: StaticLora) -> Tensors:
    if lora.denoiser == kohya.UNET:
        # Of SDXL's blocks it knows diffusers' names too, however many layers they have.
        named = kohya.named(lora.denoiser, lora.layers, is_sdxl=False)
        return _with_alpha(named | kohya.text_named(lora.denoiser, lora.text, is_sdxl(lora)))
    pairs = comfyui.named(lora.denoiser, lora.layers)
    pairs |= text_encoders.comfyui_named(lora)
    return {
        f"{name}.lora_{side}.weight": tensor
        for name, pair in pairs.items()
        for side, tensor in (("A", pair.down), ("B", pair.up))
    }


def _comfyui_metadata(lora: StaticLora) -> dict[str, str]:
    return _kohya_metadata(lora) if lora.denoiser == kohya.UNET else {}


def _modelspec(lora: StaticLora) -> dict[str, str]:
    """Stability AI's model metadata standard, ModelSpec 1.0.0."""
    base = str(lora.config.base_model_name_or_path or lora.denoiser)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_architecture(lora)}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"Plain LoRA of a FeRA adapter for {base}",
    }


def _architecture(lora: StaticLora) -> str:
    """ModelSpec's name where the adapter's file tells, else the denoiser's class."""
    if is_sdxl(lora):
        return "stable-diffusion-xl-v1-base"
    if lora.denoiser == kohya.UNET:
        is_second = kohya.base_version(lora.denoiser, lora.layers, is_sdxl=False) == "sd_v2"
        return "stable-diffusion-v2-512" if is_second else "stable-diffusion-v1"
    named = {
        "SD3Transformer2DModel": "stable-diffusion-3",
        kohya.FLUX: "flux-1-dev",
        "ChromaTransformer2DModel": "chroma",
        "Lumina2Transformer2DModel": "lumina-2",
    }
    return named.get(lora.denoiser or "", lora.denoiser or "unknown")


FORMATS: dict[str, Format] = {
    "diffusers": Format(
        "pytorch_lora_weights.safetensors",
        "any layers of a denoiser that diffusers itself loads LoRAs into",
        _diffusers_refuses,
        _diffusers_tensors,
        _diffusers_metadata,
    ),
    "kohya": Format("lora.safetensors", kohya.HOLDS, _kohya_refuses, _kohya_tensors, _kohya_metadata),
    "comfyui": Format("lora.safetensors", comfyui.HOLDS, _comfyui_refuses, _comfyui_tensors, _comfyui_metadata),
}
