"""Settings of a FeRA adapter."""

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PeftType

from fera.errors import FeraError

FORMAT_VERSION = 1

# LoraConfig's settings that would bypass the gate, change the base's weights at the start, or need a layer of their
# own. Each maps to the value that leaves it off.
_NOT_ROUTED: dict[str, Any] = {
    "use_dora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
    "layer_replication": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "trainable_token_indices": None,
    "velora_config": None,
    "monteclora_config": None,
    "kasa_config": None,
}


@dataclass
class FeraConfig(LoraConfig):
    r"""Settings of a FeRA adapter: those of `peft.LoraConfig`, of experts and of the router.

    `r` is the rank of one expert, so a layer holds `num_experts * r` ranks, and `lora_alpha / r` the scale of one
    (`lora_alpha / sqrt(r)` with `use_rslora`).

    Args:
        r: rank of one expert, at least 1.
        lora_alpha: numerator of an expert's scale, above 0. When left out, `r * num_experts`: then a uniform gate
            equals a plain LoRA of rank `num_experts * r` at scale 1, and learning rates carry over from it.
        num_experts: E, at least 1.
        num_bands: K, frequency bands of the indicator, at least 2.
        kappa: deviation of the finest Gaussian as a fraction of the latent's shorter side, in (0, 1].
        temperature: of the router's softmax, above 0.
        router_features: width of the router's hidden layer, at least 1.
        format_version: of the adapter's files; written by fera.
        base_fingerprint: what the base looks like that the adapter belongs to; written by fera. None skips the
            check when the adapter is put into a model.

    Raises:
        FeraError: a value is out of range, or a setting of LoRA cannot be routed. It is a ValueError.
    """

    r: int = field(default=4, metadata={"help": "Rank of one expert."})
    lora_alpha: int | float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Numerator of an expert's scale lora_alpha / r; r * num_experts if unset."}
    )
    num_experts: int = field(default=3, metadata={"help": "Number of experts E."})
    num_bands: int = field(default=3, metadata={"help": "Number of frequency bands K of the indicator."})
    kappa: float = field(
        default=1 / 128, metadata={"help": "Finest Gaussian's deviation as a fraction of the latent's shorter side."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Temperature of the router's softmax."})
    router_features: int = field(default=64, metadata={"help": "Width of the router's hidden layer."})
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Format of the adapter's files."})
    base_fingerprint: dict[str, Any] | None = field(
        default=None, repr=False, metadata={"help": "Fingerprint of the base model; written by fera."}
    )

    def __post_init__(self) -> None:
        if not isinstance(self.format_version, int) or self.format_version > FORMAT_VERSION:
            raise FeraError(
                f"the adapter has format version {self.format_version}, this fera reads up to {FORMAT_VERSION}: "
                "upgrade fera to load it"
            )
        self._check_ranges()
        if self.lora_alpha is None:
            self.lora_alpha = self.r * self.num_experts
        super().__post_init__()
        self._check_routable()
        self.peft_type = PeftType("FERA")

    def _check_ranges(self) -> None:
        for name, least in (("r", 1), ("num_experts", 1), ("num_bands", 2), ("router_features", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise FeraError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name, most in (("kappa", 1.0), ("temperature", float("inf")), ("lora_alpha", float("inf"))):
            value = getattr(self, name)
            if name == "lora_alpha" and value is None:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value <= most or value == float("inf"):
                limit = f"in (0, {most:g}]" if most < float("inf") else "above 0 and finite"
                raise FeraError(f"{name} must be {limit}, got {value!r}")
        if not 0 <= self.lora_dropout < 1:
            raise FeraError(f"lora_dropout must lie in [0, 1), got {self.lora_dropout!r}")
        for name in ("rank_pattern", "alpha_pattern"):
            for key, value in (getattr(self, name) or {}).items():
                if not value > 0:
                    raise FeraError(f"{name}[{key!r}] must be above 0, got {value!r}")

    def _check_routable(self) -> None:
        for name, off in _NOT_ROUTED.items():
            value = getattr(self, name, off)
            if value != off and value not in (None, False, []):
                raise FeraError(f"{name}={value!r} cannot be routed by fera; leave it at {off!r}")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise FeraError(
                f"init_lora_weights={self.init_lora_weights!r} cannot be routed by fera: experts start at zero, "
                "without touching the base's weights; use True or 'gaussian'"
            )
