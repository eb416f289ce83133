"""The plain LoRA that a routed adapter is under one fixed gate."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fera.adapters.file import AdapterFile
from fera.adapters.scales import expert_scale
from fera.errors import FeraError
from fera.export.pair import Pair
from fera.format import PEFT_PREFIX, ROUTER_KEY
from fera.traces.gates import GateChoice, choose_gate
from fera.tuner import FeraConfig

_KEY = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight$")
_ROUTER = PEFT_PREFIX + ROUTER_KEY


@dataclass(frozen=True)
class StaticLora:
    """A plain LoRA of rank E r: the experts under one gate.

    Args:
        layers: by the layer's path in the denoiser, in the order of the file.
        gate: shape (E,); a 1 where the experts are one LoRA anyway.
        config: the config of the routed adapter.
        text: LoRA of the text encoders by encoder and by the layer's path, as files have it.
    """

    layers: Mapping[str, Pair]
    gate: Tensor
    config: FeraConfig
    text: Mapping[str, Mapping[str, Pair]] = field(default_factory=dict)

    @property
    def denoiser(self) -> str | None:
        """Class name of the denoiser it belongs to; None where the adapter does not say."""
        return (self.config.base_fingerprint or {}).get("class")


def static_lora(file: AdapterFile, gate: Tensor, by_layer: Mapping[str, Tensor] | None = None) -> StaticLora:
    r"""Fix the gate of an adapter.

    .. math:: B\,\mathrm{diag}(s\,g \otimes 1_r)\,A

    Gate and scale :math:`s` go into the up matrix: the down matrix is the same under every gate, and an alpha that
    equals the rank gives the right strength in tools that read alpha and in tools that do not.

    Args:
        file: the adapter.
        gate: shape (E,).
        by_layer: other gates, by the layer's path.

    Raises:
        FeraError: the adapter holds more than a LoRA can.
    """
    config, own = file.config, by_layer or {}
    check_plain(config)
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    for key, tensor in file.tensors().items():
        if match := _KEY.match(key):
            (downs if match["side"] == "A" else ups)[match["layer"]] = tensor
        elif not key.startswith(_ROUTER):
            raise FeraError(f"{file.weights} holds {key}, which is no part of a LoRA: no export format can hold it")
    layers = {}
    for name in downs.keys() ^ ups.keys():
        raise FeraError(f"{file.weights} has one side alone of the experts of {name}: it is incomplete")
    for name, down in downs.items():
        weights = rank_weights(own.get(name, gate), down.shape[0]) * expert_scale(vars(config), name)
        up = ups[name].float()
        layers[name] = Pair(down, (up * weights.view(1, -1, *[1] * (up.ndim - 2))).to(ups[name].dtype))
    return StaticLora(layers, gate, config, text_pairs(file))


def text_pairs(file: AdapterFile) -> dict[str, dict[str, Pair]]:
    """LoRA of the text encoders, which nothing routes; its scale goes into the up matrix too."""
    if file.text is None:
        return {}
    loras = {encoder: file.text.lora(encoder) for encoder in file.text.loras}
    return {
        encoder: {path: Pair(down, up * (lora.alpha / lora.rank)) for path, (down, up) in lora.layers.items()}
        for encoder, lora in loras.items()
    }


def gate_for(config: FeraConfig, choice: GateChoice | None, adapter: str | None = None) -> Tensor:
    """The gate that a choice stands for, for one adapter.

    Args:
        config: the adapter's.
        choice: as `choose_gate` takes it; None for an adapter that has no gate, whose experts are one LoRA.
        adapter: its name, to find it in a recorded list.

    Returns:
        Shape (E,), or a 1 where there is no gate.

    Raises:
        FeraError: as `choose_gate`, or there is no gate to choose.
    """
    if config.has_gate:
        return choose_gate(choice, config.num_experts, adapter)
    if choice is not None:
        raise FeraError(
            "the adapter's experts act all alike (router='gradient'): it is a plain LoRA already, and exact as one; "
            "leave `gate` out"
        )
    return torch.ones(1)


def check_plain(config: FeraConfig) -> None:
    """Refuse experts that are no LoRA.

    Raises:
        FeraError: the adapter's experts are of another scheme, or it has a soft prompt.
    """
    check_no_soft_prompt(config)
    if config.expert is not None:
        raise FeraError(
            f"the adapter's experts are a {type(config.expert).__name__}: a plain LoRA is an export format that cannot "
            "hold the adapter. Only LoRA experts can be merged; to export others as a LoRA that is nearly the same, "
            "give the base"
        )


def check_no_soft_prompt(config: FeraConfig) -> None:
    """Refuse what no LoRA can hold.

    Raises:
        FeraError: the adapter has a soft prompt.
    """
    if config.num_virtual_tokens:
        raise FeraError(
            f"the adapter has a soft prompt of {config.num_virtual_tokens} vectors, which a plain LoRA cannot hold: it "
            "can neither be exported nor merged. Train without num_virtual_tokens for that"
        )


def rank_weights(gate: Tensor, width: int) -> Tensor:
    """The gate of the expert that each of a layer's ranks belongs to, shape (E r,); a 1 for all of them alike."""
    return gate.repeat_interleave(width // gate.shape[0])
