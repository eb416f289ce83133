"""Settings of the method: what they may be, and what they are when left out.

`FeraConfig`, the configuration of a training run and the readers of files all take them from here. Nothing here needs
PyTorch.
"""

from collections.abc import Mapping
from typing import Any

from fera.errors import FeraError
from fera.format import FORMAT_VERSION

# What is left out is as in the paper and its released code; the scale is that of a uniform gate's LoRA.
RANK = 4
NUM_EXPERTS = 3
NUM_BANDS = 3
KAPPA = 1 / 128
TEMPERATURE = 0.7
ROUTER_FEATURES = 64

INDICATORS = ("bands", "released")
ROUTERS = ("soft", "uniform", "rank_mask", "gradient")
ROUTER_INPUTS = ("shares", "log_shares", "log_energies", "timestep", "shares+timestep", "log_energies+timestep")

# By name; what is not here has no value of its own when left out.
DEFAULTS: dict[str, Any] = {
    "r": RANK,
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "num_experts": NUM_EXPERTS,
    "ranks": None,
    "subspace_energy": None,
    "num_virtual_tokens": 0,
    "num_bands": NUM_BANDS,
    "kappa": KAPPA,
    "indicator": "bands",
    "router": "soft",
    "router_input": "shares",
    "temperature": TEMPERATURE,
    "router_features": ROUTER_FEATURES,
    "component": None,
    "rank_pattern": None,
    "alpha_pattern": None,
}

_LEAST = {"r": 1, "num_experts": 1, "num_virtual_tokens": 0, "num_bands": 2, "router_features": 1}
_MOST = {"kappa": 1.0, "temperature": float("inf"), "lora_alpha": float("inf")}


def check_ranges(settings: Mapping[str, Any]) -> None:
    """Hold settings against their ranges.

    Args:
        settings: by name; others than those of `DEFAULTS` do not matter, and what is missing is at its default.

    Raises:
        FeraError: a value is out of range, or two do not go together.
    """
    given = {name: settings.get(name, default) for name, default in DEFAULTS.items()}
    for name, least in _LEAST.items():
        value = given[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise FeraError(f"{name} must be an integer of at least {least}, got {value!r}")
    for name, most in _MOST.items():
        value = given[name]
        if (name, value) in (("lora_alpha", None), ("kappa", "auto")):
            continue
        if not _is_number(value) or not 0 < value <= most or value == float("inf"):
            limit = f"in (0, {most:g}]" if most < float("inf") else "above 0 and finite"
            raise FeraError(f"{name} must be {limit}, got {value!r}")
    if not _is_number(given["lora_dropout"]) or not 0 <= given["lora_dropout"] < 1:
        raise FeraError(f"lora_dropout must lie in [0, 1), got {given['lora_dropout']!r}")
    for name, choices in (("indicator", INDICATORS), ("router", ROUTERS), ("router_input", ROUTER_INPUTS)):
        if given[name] not in choices:
            raise FeraError(f"{name} must be one of {', '.join(choices)}, got {given[name]!r}")
    _check_together(given)
    component = given["component"]
    if component is not None and not (isinstance(component, str) and component):
        raise FeraError(f"component must be the name of a denoiser, got {component!r}")
    for name in ("rank_pattern", "alpha_pattern"):
        for key, value in (given[name] or {}).items():
            if not value > 0:
                raise FeraError(f"{name}[{key!r}] must be above 0, got {value!r}")


def check_router_input(router_input: str, indicator: str) -> None:
    """Refuse energies as what the router reads where the indicator has none.

    Raises:
        FeraError: the indicator is "released", which has shares alone.
    """
    if "energies" in router_input and indicator == "released":
        raise FeraError(f"router_input={router_input!r} needs indicator='bands'; the released one has shares alone")


def check_format(version: object) -> None:
    """Refuse an adapter of a newer format.

    Raises:
        FeraError: this fera cannot read it.
    """
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FeraError(
            f"the adapter has format version {version}, this fera reads up to {FORMAT_VERSION}: upgrade fera to load it"
        )


def _check_together(given: Mapping[str, Any]) -> None:
    if given["router"] == "rank_mask" and given["router_input"] != "timestep":
        raise FeraError("router='rank_mask' masks by the timestep; set router_input='timestep' with it")
    check_router_input(given["router_input"], given["indicator"])
    if given["ranks"] is not None:
        _check_ranks(given)


def _check_ranks(given: Mapping[str, Any]) -> None:
    ranks = given["ranks"]
    if not isinstance(ranks, list) or not all(isinstance(r, int) and not isinstance(r, bool) and r > 0 for r in ranks):
        raise FeraError(f"ranks must be a list of integers of at least 1, one an expert; got {ranks!r}")
    if given["router"] != "gradient":
        raise FeraError("ranks of their own are for router='gradient'; other routers have experts of one rank, r")
    if len(ranks) != given["num_experts"] and given["num_experts"] != NUM_EXPERTS or not ranks:
        raise FeraError(f"ranks has {len(ranks)} entries, but num_experts is {given['num_experts']}")
    for name in ("r", "rank_pattern"):
        if given[name] not in (DEFAULTS[name], {}):
            raise FeraError(f"ranks says the rank of each expert: leave {name} out")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
