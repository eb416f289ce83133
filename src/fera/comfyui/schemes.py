"""Experts of other schemes than LoRA, read without PEFT: their tensors, and the formulas that PEFT has for them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fera.comfyui.experts import Directions, Experts, LayerExperts, Rotations, Scalings, WholeWeights
from fera.errors import FeraError
from fera.format import EXPERTS, PEFT_PREFIX

_PART = re.compile(
    rf"^{re.escape(PEFT_PREFIX)}(?P<layer>.+)\.{EXPERTS}\.(?P<expert>\d+)\.(?P<part>.+?)(\.weight)?$",
)
# What PEFT's configs have where a file does not say.
_DEFAULTS = {"r": 8, "alpha": 8, "lora_alpha": 8}

_Parts = Mapping[str, Tensor]


def scheme_layers(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> dict[str, LayerExperts]:
    """The experts of each layer.

    Args:
        settings: of the adapter; `expert` names the scheme.
        tensors: of its file, without the router's.
        where: what messages call the file.

    Raises:
        FeraError: the scheme is not known here, or the file is damaged.
    """
    expert = _DEFAULTS | dict(settings["expert"])
    kind = str(expert.get("peft_type")).upper()
    if kind not in _READERS:
        raise FeraError(
            f"the experts of {where} are of scheme {kind}, which fera cannot route in ComfyUI; it can: LoRA, CERSA, "
            f"DoRA, {', '.join(sorted(set(_READERS) - {'LORA'}))}. fera export --base writes a LoRA that is nearly the "
            "same under a fixed gate"
        )
    if expert.get("rank_pattern") or expert.get("alpha_pattern"):
        raise FeraError(f"the experts of {where} have patterns of ranks, which fera cannot route in ComfyUI")
    count = settings["num_experts"]
    found: dict[str, list[dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        match = _PART.match(key)
        if match is None or int(match["expert"]) >= count:
            raise FeraError(f"{where} holds {key}, which is no part of {count} experts of scheme {kind}")
        experts = found.setdefault(match["layer"], [{} for _ in range(count)])
        experts[int(match["expert"])][match["part"]] = tensor.float()
    layers = {}
    for layer, parts in found.items():
        try:
            layers[layer] = _READERS[kind](parts, expert)
        except (KeyError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise FeraError(f"{where} is damaged: its experts of {layer} are incomplete") from error
    return layers


def _loha(parts: Sequence[_Parts], expert: Mapping[str, Any]) -> LayerExperts:
    scale = expert["alpha"] / expert["r"]

    def form(own: _Parts) -> Tensor:
        if "hada_t1" in own:
            sides = (_tucker(own[f"hada_t{n}"], own[f"hada_w{n}_a"], own[f"hada_w{n}_b"]) for n in (1, 2))
        else:
            sides = (own[f"hada_w{n}_a"] @ own[f"hada_w{n}_b"] for n in (1, 2))
        first, second = sides
        return (first * second * scale).flatten(1)

    return _whole(parts, form)


def _lokr(parts: Sequence[_Parts], expert: Mapping[str, Any]) -> LayerExperts:
    scale = expert["alpha"] / expert["r"]

    def form(own: _Parts) -> Tensor:
        left = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        if "lokr_w2" in own:
            right = own["lokr_w2"]
        elif "lokr_t2" in own:
            right = _tucker(own["lokr_t2"], own["lokr_w2_a"], own["lokr_w2_b"])
        else:
            right = own["lokr_w2_a"] @ own["lokr_w2_b"]
        left = left.reshape(*left.shape, *[1] * (right.ndim - 2))
        return (torch.kron(left, right.contiguous()) * scale).flatten(1)

    return _whole(parts, form)


def _whole(parts: Sequence[_Parts], form: Callable[[_Parts], Tensor]) -> WholeWeights:
    if len({form(own).shape for own in parts}) > 1:
        raise ValueError("experts of different sizes")
    return WholeWeights(tuple(parts), form)


def _tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A convolution's weight (out, in, h, w) of a core (r, r, h, w), by (r, out) and (r, in)."""
    return torch.einsum("ijkl,jq,ip->pqkl", core, right, left)


def _oft(parts: Sequence[_Parts], expert: Mapping[str, Any]) -> LayerExperts:
    vectors = torch.stack([own["oft_R"] for own in parts])
    size = (1 + math.isqrt(1 + 8 * vectors.shape[-1])) // 2
    skew = torch.zeros(*vectors.shape[:-1], size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[..., rows, columns] = vectors
    skew = skew - skew.mT
    if expert.get("coft"):
        limit = expert["eps"] / math.sqrt(skew.shape[1])
        length = torch.linalg.matrix_norm(skew, keepdim=True)
        skew = torch.where(length <= limit, skew, limit * skew / length)
    return Rotations(_orthogonal(skew, expert), bool(expert.get("block_share")))


def _orthogonal(skew: Tensor, expert: Mapping[str, Any]) -> Tensor:
    """Cayley's transform of skew-symmetric matrices, or as many terms of its series as PEFT takes."""
    one = torch.eye(skew.shape[-1]).expand_as(skew)
    if not expert.get("use_cayley_neumann", True):
        return torch.linalg.solve(one + skew, one - skew, left=False)
    terms = expert.get("num_cayley_neumann_terms", 5)
    if terms < 3:
        return one + 2 * skew if terms == 2 else one.clone()
    last = max(3, terms - 1)  # it counts half
    powers = [torch.linalg.matrix_power(skew, power) for power in range(1, last + 1)]
    return one + 2 * sum(powers[:-1]) + powers[-1]


def _ia3(parts: Sequence[_Parts], expert: Mapping[str, Any]) -> LayerExperts:
    return Scalings(torch.stack([own["ia3_l"].flatten() for own in parts]))


def _dora(parts: Sequence[_Parts], expert: Mapping[str, Any]) -> LayerExperts:
    scale = expert["lora_alpha"] / (math.sqrt(expert["r"]) if expert.get("use_rslora") else expert["r"])
    lora = Experts(
        torch.cat([own["lora_A"] for own in parts]), torch.cat([own["lora_B"] for own in parts], dim=1) * scale
    )
    return Directions(lora, torch.stack([own["lora_magnitude_vector"].flatten() for own in parts]))


_READERS: dict[str, Callable[[Sequence[_Parts], Mapping[str, Any]], LayerExperts]] = {
    "IA3": _ia3,
    "LOHA": _loha,
    "LOKR": _lokr,
    "LORA": _dora,
    "OFT": _oft,
}
