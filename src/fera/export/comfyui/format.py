"""Files that ComfyUI loads: each layer under a name that its own map knows, which differs between models.

Of UNets it knows kohya's names; of some transformers diffusers' own path, behind `transformer.`; of the others the path
in the original model, behind `diffusion_model.`.
"""

from collections.abc import Mapping

import torch

from fera.export.comfyui.lookup import BY_DIFFUSERS, NAMED, layer_in_comfyui
from fera.export.comfyui.own import FEED_FORWARD, Own, ordered
from fera.export.pair import Pair

HOLDS = f"UNets under kohya's names, {', '.join(sorted((*BY_DIFFUSERS, *NAMED)))}"


def refuses(denoiser: str | None, layers: list[str]) -> str | None:
    """Why the format cannot hold layers of a denoiser that is no UNet, or None."""
    if denoiser in BY_DIFFUSERS:
        return None
    if denoiser is None or denoiser not in NAMED:
        return f"its key names for a {denoiser} are not known to fera"
    owns = {layer: layer_in_comfyui(denoiser, layer) for layer in layers}
    if unknown := [layer for layer, own in owns.items() if own is None]:
        return f"its key names are not known to fera for: {', '.join(unknown[:3])}"
    grouped: dict[str, set[str]] = {}
    for own in owns.values():
        if own is not None and own.is_grouped:
            grouped.setdefault(own.path, set()).add(own.part)
    for path, parts in grouped.items():
        if parts == {"q"}:
            return f"queries of {path} are adapted and neither keys nor values, so the width of those is not known"
    return None


def named(denoiser: str | None, layers: Mapping[str, Pair]) -> dict[str, Pair]:
    """The LoRA of each layer by the name that ComfyUI knows, for layers that are not refused."""
    if denoiser in BY_DIFFUSERS:
        return {f"transformer.{layer}": pair for layer, pair in layers.items()}
    found: dict[str, Pair] = {}
    fused: dict[str, tuple[Own, dict[str, Pair]]] = {}
    for layer, pair in layers.items():
        own = layer_in_comfyui(denoiser or "", layer)
        assert own is not None  # refused before
        if own.part:
            fused.setdefault(own.path, (own, {}))[1][own.part] = pair
        elif own.second:
            for path, up in zip((own.path, own.second), pair.up.chunk(2), strict=True):
                found[f"diffusion_model.{path}"] = Pair(pair.down, up)
        else:
            found[f"diffusion_model.{own.path}"] = _ordered(pair, own.order) if own.order else pair
    return found | {f"diffusion_model.{path}": _fused(own, pairs) for path, (own, pairs) in fused.items()}


def _ordered(pair: Pair, order: tuple[int, ...]) -> Pair:
    return Pair(pair.down, ordered(pair.up, order))


def _fused(own: Own, pairs: Mapping[str, Pair]) -> Pair:
    """One LoRA for a fused layer: downs stacked, ups on the diagonal; parts without a LoRA have no ranks."""
    widths = _widths(own, pairs)
    some = next(iter(pairs.values()))
    ups = [pairs[part].up if part in pairs else some.up.new_zeros(widths[part], 0) for part in own.parts]
    return Pair(torch.cat([pairs[part].down for part in own.parts if part in pairs]), torch.block_diag(*ups))


def _widths(own: Own, pairs: Mapping[str, Pair]) -> dict[str, int]:
    """How many outputs each part has."""
    part, some = next(iter(pairs.items()))
    if own.is_grouped:  # queries are as wide as the model
        keys = pairs.get("k") or pairs["v"]
        return {"q": some.down.shape[1], "k": len(keys.up), "v": len(keys.up)}
    factors = {name: FEED_FORWARD.get(name, 1) for name in own.parts}
    return {name: len(some.up) // factors[part] * factor for name, factor in factors.items()}
