"""Plain LoRA on a text encoder, by PEFT, under the name of the adapter that it belongs to."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftType, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from fera.adapters.text.kinds import kind_of
from fera.adapters.text.text_lora import TextLora
from fera.errors import FeraError

# Settings of LoraConfig that the files of other tools cannot tell, and what leaves them off.
_PLAIN: dict[str, Any] = {
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def path_in_file(encoder: Any, path: str) -> str:
    """What files call a layer of a text encoder.

    Transformers calls the layers of a bare CLIP text model without their prefix since 5.6; files have it all the same.
    """
    prefix = _prefix(encoder)
    return path if path.startswith(prefix) else prefix + path


def path_in(encoder: Any, path: str) -> str:
    """What a text encoder calls a layer of a file."""
    prefix = _prefix(encoder)
    return path if hasattr(encoder, prefix.removesuffix(".")) else path.removeprefix(prefix)


def add_lora(encoder: Any, adapter: str, rank: int, alpha: float, targets: Sequence[str], *, inference: bool) -> None:
    """Put a fresh LoRA into a text encoder; its layers are frozen but for the LoRA.

    Args:
        encoder: the text encoder.
        adapter: what to call it.
        rank: the rank of its layers.
        alpha: its strength is alpha / rank.
        targets: paths of the layers in the text encoder.
        inference: whether it is to stay as it is.

    Raises:
        FeraError: the encoder has no such layers.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), inference_mode=inference)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            # Several adapters on one model are meant here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, encoder, adapter)
    except ValueError as error:
        raise FeraError(f"cannot put a LoRA into a {type(encoder).__name__}: {error}") from error
    tell_transformers(encoder)


def lora_of(encoder: Any, adapter: str) -> TextLora | None:
    """The LoRA of an adapter in a text encoder, on the CPU; None where it has none.

    Raises:
        FeraError: it is no plain LoRA of one rank.
    """
    config = getattr(encoder, "peft_config", {}).get(adapter)
    if config is None:
        return None
    changed = [name for name, plain in _PLAIN.items() if (getattr(config, name, plain) or plain) != plain]
    if config.peft_type != PeftType.LORA or changed:
        what = ", ".join(changed) or config.peft_type
        raise FeraError(f"adapter {adapter!r} of the text encoder is more than a plain LoRA ({what}) and is not saved")
    layers = {
        path_in_file(encoder, path): (_owned(module.lora_A[adapter].weight), _owned(module.lora_B[adapter].weight))
        for path, module in lora_layers(encoder, adapter).items()
    }
    return TextLora(config.r, float(config.lora_alpha), layers)


@torch.no_grad()
def fill_lora(encoder: Any, adapter: str, lora: TextLora) -> None:
    """Give the LoRA of an adapter in a text encoder the weights of another of the same layers and rank."""
    layers = lora_layers(encoder, adapter)
    for path, (down, up) in lora.layers.items():
        layer = layers[path_in(encoder, path)]
        layer.lora_A[adapter].weight.copy_(down)
        layer.lora_B[adapter].weight.copy_(up)


def lora_layers(encoder: Any, adapter: str) -> dict[str, Any]:
    """Layers of a text encoder that hold an adapter's LoRA, by path."""
    return {
        path: module
        for path, module in encoder.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }


def active_loras(encoder: Any) -> list[str]:
    """Names of the LoRAs that act in a text encoder."""
    names: dict[str, None] = {}
    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            names.update(dict.fromkeys(module.active_adapters))
    return list(names)


def activate_loras(encoder: Any, names: Sequence[str]) -> None:
    """Let these LoRAs act, and no others."""
    frozen = all(encoder.peft_config[name].inference_mode for name in names)
    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            if module.disable_adapters:  # after `pipe.disable_lora()`
                module.enable_adapters(True)
            module.set_adapter(list(names), inference_mode=frozen)


def scale_lora(encoder: Any, adapter: str, weight: float) -> None:
    """Weigh an adapter's LoRA."""
    for layer in lora_layers(encoder, adapter).values():
        layer.set_scale(adapter, weight)


def tell_transformers(encoder: Any) -> None:
    """Transformers' own adapter methods ask this flag whether there is anything to do."""
    if hasattr(encoder, "_hf_peft_config_loaded"):
        encoder._hf_peft_config_loaded = bool(getattr(encoder, "peft_config", None))


def _prefix(encoder: Any) -> str:
    kind = kind_of(encoder)
    return kind.prefix if kind is not None else ""


def _owned(weight: Tensor) -> Tensor:
    return weight.detach().cpu().contiguous().clone()
