"""What an adapter's settings say of its router: what it reads, and a fresh one."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fera.method.bands import FrequencyBands
from fera.method.fixed_routers import RankMaskRouter, UniformRouter
from fera.method.released_bands import ReleasedBands
from fera.method.router import SoftFrequencyRouter
from fera.method.router_input import RouterInput
from fera.method.settings import DEFAULTS


def router_input(settings: Mapping[str, Any]) -> RouterInput:
    """What the router of an adapter reads.

    Args:
        settings: by name, checked (`fera.method.settings`); what is missing is at its default. `kappa` is a number.
    """
    given = DEFAULTS | dict(settings)
    bands = ReleasedBands if given["indicator"] == "released" else FrequencyBands
    return RouterInput(given["router_input"], bands(given["num_bands"], given["kappa"]))


def new_router(settings: Mapping[str, Any]) -> nn.Module:
    """A fresh router for an adapter: what `router_input` gives to gates of shape (B, E).

    Args:
        settings: as for `router_input`.
    """
    given = DEFAULTS | dict(settings)
    if given["router"] == "uniform":
        return UniformRouter(given["num_experts"])
    if given["router"] == "rank_mask":
        return RankMaskRouter(given["num_experts"])
    entries = router_input(given).size
    return SoftFrequencyRouter(entries, given["num_experts"], given["router_features"], given["temperature"])
