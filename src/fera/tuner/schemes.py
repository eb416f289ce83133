"""Which adapter schemes of PEFT can be experts, and what a config of one may say."""

import copy
from dataclasses import MISSING, dataclass, fields
from typing import Any

from peft import PeftConfig, PeftType
from torch import nn

from fera.errors import FeraError


@dataclass(frozen=True)
class Scheme:
    """A scheme that the tests mix, in words.

    Args:
        title: what the literature calls it.
        expert: what the layer's weight is, or its output, with one expert alone.
        mixture: what the gated sum of outputs is then.
        settings: the settings of a config, beside its `peft_type`, that make it this scheme.
    """

    title: str
    expert: str
    mixture: str = "a gated sum of weight deltas"
    settings: str = ""


# By PEFT's name.
SCHEMES: dict[str, Scheme] = {
    "LORA": Scheme(
        "DoRA",
        "magnitude times direction of $W + sB_eA_e$",
        "a gated sum of weight deltas; magnitudes are not averaged before they are applied",
        "use_dora=True",
    ),
    "LOHA": Scheme("LoHa", r"$W + s(B_eA_e \odot B'_eA'_e)$"),
    "LOKR": Scheme("LoKr", r"$W + s(C_e \otimes B_eA_e)$"),
    "OFT": Scheme(
        "OFT",
        "$W R_e$, $R_e$ orthogonal",
        "a gated sum of outputs; a mean of rotations is no rotation, so norms can shrink where experts disagree",
    ),
    "BOFT": Scheme("BOFT", "$W R_e$, $R_e$ a product of butterflies", "as OFT"),
    "IA3": Scheme("(IA)³", r"$l_e \odot f(x)$", "the output scaled by the gated mean of the scalings"),
    "VERA": Scheme("VeRA", r"$W + \Lambda_{b,e} B \Lambda_{d,e} A$, $A$ and $B$ random and frozen"),
}

# LoRAs inside of the principal subspaces of their layers' weights (`fera.tuner.subspace`): a scheme of no PEFT config.
CERSA = "CERSA"
CERSA_ENERGY = 0.95

# Where the experts go and how they are kept is a matter of FeraConfig.
_PLACEMENT = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("feedforward_modules", "target_parameters", "layer_replication", "trainable_token_indices"),
)


def scheme_of(expert: PeftConfig | dict[str, Any] | None) -> str | None:
    """The name of an expert's scheme; None where it names none."""
    kind = expert.get("peft_type") if isinstance(expert, dict) else getattr(expert, "peft_type", None)
    return None if kind is None else str(getattr(kind, "value", kind)).upper()


def cersa_energy(expert: Any) -> float:
    """The energy that an expert's table of scheme CERSA keeps.

    Raises:
        FeraError: the table holds anything else.
    """
    if unknown := sorted(set(expert) - {"peft_type", "energy"}):
        raise FeraError(
            f"expert has settings that CERSA does not know: {', '.join(unknown)}. It takes energy; rank and scale are "
            "r and lora_alpha, beside `expert`"
        )
    energy: float = expert.get("energy", CERSA_ENERGY)
    return energy


def as_scheme(expert: PeftConfig | dict[str, Any]) -> PeftConfig:
    """The config of one expert, checked.

    Args:
        expert: a PEFT config, or a dict of one with its `peft_type`.

    Raises:
        FeraError: the scheme cannot be mixed, or a setting belongs to FeraConfig or is unknown.
    """
    if isinstance(expert, dict):
        expert = _from_dict(expert)
    if not isinstance(expert, PeftConfig):
        raise FeraError(f"expert must be a PEFT config or a dict of one, got a {type(expert).__name__}")
    expert = copy.deepcopy(expert)  # the caller's may go into another adapter next
    kind = str(getattr(expert.peft_type, "value", expert.peft_type))
    if kind not in SCHEMES:
        raise FeraError(f"experts of scheme {kind} cannot be mixed; these can: {', '.join(SCHEMES)}")
    if kind == "LORA" and not getattr(expert, "use_dora", False):
        raise FeraError(
            "expert is a plain LoRA, which is what FeraConfig routes itself: leave `expert` out and set r and "
            "lora_alpha of FeraConfig (a LoraConfig is meant for use_dora=True)"
        )
    for name in _PLACEMENT:
        if getattr(expert, name, None):
            raise FeraError(f"expert sets {name}; set it in FeraConfig, which places the experts")
        if hasattr(expert, name):
            # (IA)3 has to be told that none of its layers is one whose input is scaled.
            setattr(expert, name, [] if name == "feedforward_modules" else None)
    if hasattr(expert, "save_projection"):
        # VeRA's frozen projections come back from their seed; a file would hold a copy for every layer and expert.
        expert.save_projection = False
    return expert


def why_unsound(expert: PeftConfig, layer: nn.Module) -> str | None:
    """Why PEFT's layer of a scheme must not be used for a base layer, although it could be made; None if it may."""
    if expert.peft_type == PeftType.OFT and isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        return "PEFT's OFT of a convolution larger than 1x1 adds overlapping patches, so a fresh one is not the base"
    return None


def changed_settings(expert: PeftConfig | dict[str, Any]) -> dict[str, Any]:
    """What a config of an expert says, in brief: its scheme, rank, and what differs from the scheme's defaults."""
    expert = as_scheme(expert)
    kind = str(getattr(expert.peft_type, "value", expert.peft_type))
    own = {field.name: getattr(expert, field.name) for field in fields(expert)}
    changed = {
        name: value
        for name, value in own.items()
        if name not in (*_PLACEMENT, "peft_type", "peft_version", "save_projection")
        and value is not None
        and (name == "r" or not _is_default(type(expert), name, value))
    }
    return {"scheme": kind} | {name: value for name, value in changed.items() if value != {}}


def _from_dict(settings: dict[str, Any]) -> PeftConfig:
    kind = str(getattr(settings.get("peft_type"), "value", settings.get("peft_type"))).upper()
    if kind not in SCHEMES:
        raise FeraError(
            f"expert needs peft_type, one of {', '.join([*SCHEMES, CERSA])}; got {settings.get('peft_type')!r}"
        )
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = {field.name for field in fields(cls) if field.init}
    values = {key: value for key, value in settings.items() if key not in ("peft_type", "save_projection")}
    if unknown := sorted(set(values) - known):
        raise FeraError(f"expert has settings that {cls.__name__} does not know: {', '.join(unknown)}")
    values = {key: value for key, value in values.items() if not _is_default(cls, key, value)}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise FeraError(f"expert: {error}") from error


def _is_default(cls: type[PeftConfig], name: str, value: Any) -> bool:
    """Whether a value is what a config has anyway: a saved config names all its fields."""
    (field,) = [field for field in fields(cls) if field.name == name]
    return field.default is not MISSING and field.default == value


def table() -> str:
    """The table of docs/schemes.md."""
    lines = ["| scheme | `peft_type` | one expert | so the mixture is |", "|---|---|---|---|", _LORA_ROW]
    for kind, scheme in SCHEMES.items():
        name = f"`{kind}`, `{scheme.settings}`" if scheme.settings else f"`{kind}`"
        lines.append(f"| {scheme.title} | {name} | {scheme.expert} | {scheme.mixture} |")
    return "\n".join(lines)


_LORA_ROW = "| LoRA, without `expert` | | $W + sB_eA_e$ | a gated sum of weight deltas, at the price of one LoRA |"
