"""An adapter's file as tensors: its layers and its router, without PEFT."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fera.adapters.header import AdapterHeader, read_header
from fera.adapters.scales import expert_scale
from fera.adapters.text.files import TextFiles, open_text
from fera.comfyui.experts import Experts, LayerExperts
from fera.comfyui.schemes import scheme_layers
from fera.errors import FeraError
from fera.format import PEFT_PREFIX, ROUTER_KEY, peft_key
from fera.method.from_settings import new_router, router_input
from fera.method.router_input import RouterInput
from fera.method.settings import DEFAULTS

_LAYER = re.compile(rf"^{re.escape(PEFT_PREFIX)}(?P<layer>.+)\.lora_(?P<side>[AB])\.weight$")
_ROUTER = PEFT_PREFIX + ROUTER_KEY


@dataclass(frozen=True)
class LiveAdapter:
    """An adapter, ready to be routed.

    Args:
        name: what messages call it.
        denoiser: class name, in diffusers, of the denoiser that it was trained on.
        num_experts: E.
        input: what the router reads.
        router: that to gates, shape (B, E).
        layers: experts by the layer's path in diffusers' denoiser.
        text: its parts in the text encoders; None where it has none.
    """

    name: str
    denoiser: str
    num_experts: int
    input: RouterInput
    router: nn.Module
    layers: Mapping[str, LayerExperts]
    text: TextFiles | None = field(default=None, compare=False)


def read_adapter(source: str | os.PathLike[str]) -> LiveAdapter:
    """Read an adapter.

    Args:
        source: a folder with its two files, a run folder of `fera train`, or one safetensors file.

    Returns:
        On the CPU, in float32.

    Raises:
        FeraError: nothing is there, it is no routed adapter, it is damaged, needs a newer fera, or holds experts
            of a scheme that cannot be routed here.
    """
    header = read_header(source)
    settings = DEFAULTS | header.settings
    denoiser = (settings.get("base_fingerprint") or {}).get("class")
    if denoiser is None:
        raise FeraError(f"{header.weights} does not say which model it belongs to (it has no fingerprint of its base)")
    if settings["router"] == "gradient":
        raise FeraError(
            f"{header.weights} has nothing to route: router = 'gradient' chooses in training alone, its experts are "
            "one LoRA. Write that by fera export, and load it as a LoRA"
        )
    if settings["kappa"] == "auto":
        raise FeraError(f"{header.weights} has kappa = 'auto', which training replaces by a number: it is not trained")
    try:
        tensors = {peft_key(key): tensor for key, tensor in load_file(header.weights).items()}
    except (SafetensorError, OSError) as error:
        raise FeraError(f"{header.weights} cannot be read ({error}); copy or download it again") from error
    text = open_text(header.weights.parent, header.text) if header.text else None
    return LiveAdapter(
        name=_name_of(header.weights),
        denoiser=denoiser,
        num_experts=settings["num_experts"],
        input=router_input(settings),
        router=_router(settings, tensors, header),
        layers=_layers(settings, tensors, header),
        text=text,
    )


def _name_of(weights: Path) -> str:
    """The file's name, or that of its folder where all adapters' files are called the same."""
    if weights.stem != "adapter_model":
        return weights.stem
    folder = weights.resolve().parent
    return folder.parent.name if folder.name == "adapter" else folder.name


def _router(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], header: AdapterHeader) -> nn.Module:
    router = new_router(settings)
    state = {key.removeprefix(_ROUTER): tensor for key, tensor in tensors.items() if key.startswith(_ROUTER)}
    try:
        router.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise FeraError(f"{header.weights}: its router does not fit its config: {error}") from error
    return router.requires_grad_(False).eval()


def _layers(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], header: AdapterHeader
) -> Mapping[str, LayerExperts]:
    if settings.get("expert") is not None:
        own = {key: tensor for key, tensor in tensors.items() if not key.startswith(_ROUTER)}
        return scheme_layers(settings, own, str(header.weights))
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := _LAYER.match(key):
            sides.setdefault(match["layer"], {})[match["side"]] = tensor.float()
        elif not key.startswith(_ROUTER):
            raise FeraError(f"{header.weights} holds {key}, which is no part of routed LoRA experts")
    layers = {}
    for layer, pair in sides.items():
        if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1] or len(pair["A"]) % settings["num_experts"]:
            raise FeraError(f"{header.weights} is damaged: its LoRA of {layer} is incomplete")
        layers[layer] = Experts(pair["A"], pair["B"] * expert_scale(settings, layer))
    return layers
