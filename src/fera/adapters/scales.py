"""The scale of an adapter's experts in a layer, from its settings alone."""

import math
import re
from collections.abc import Mapping
from typing import Any

from fera.method.settings import DEFAULTS


def expert_scale(settings: Mapping[str, Any], layer: str) -> float:
    """Alpha over the rank of one expert, or over its root with `use_rslora`.

    Experts that no gate weighs (`router="gradient"`) are one LoRA: the rank is that of all together.

    Args:
        settings: of `fera.FeraConfig`, as saved; what is missing is at its default.
        layer: the layer's path in the denoiser. The first pattern that matches its end counts, as PEFT has it.
    """
    given = DEFAULTS | dict(settings)
    rank = _of_pattern(given["rank_pattern"] or {}, layer, given["r"])
    if given["router"] == "gradient":
        rank = rank * given["num_experts"] if given["ranks"] is None else sum(given["ranks"])
    alpha = given["lora_alpha"]
    if alpha is None:
        alpha = given["r"] * given["num_experts"]
    alpha = _of_pattern(given["alpha_pattern"] or {}, layer, alpha)
    return float(alpha / (math.sqrt(rank) if given.get("use_rslora") else rank))


def _of_pattern(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    return next(found, otherwise)
