"""Settings of a FeRA adapter."""

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import LoraConfig, PeftConfig, PeftType

from fera.errors import FeraError
from fera.format import FORMAT_VERSION
from fera.method.settings import (
    KAPPA,
    NUM_BANDS,
    NUM_EXPERTS,
    RANK,
    ROUTER_FEATURES,
    ROUTER_INPUTS,
    TEMPERATURE,
    check_format,
    check_ranges,
)
from fera.tuner.schemes import CERSA, as_scheme, cersa_energy, scheme_of

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
    (`lora_alpha / sqrt(r)` with `use_rslora`). With `router="gradient"` nothing is routed in a forward: the experts are
    one LoRA of all their ranks R together, at the scale `lora_alpha / R` (`lora_alpha / sqrt(R)`).

    Args:
        r: rank of one expert, at least 1.
        lora_alpha: numerator of an expert's scale, above 0. When left out, `r * num_experts`: then a uniform gate
            equals a plain LoRA of rank `num_experts * r` at scale 1, and learning rates carry over from it. Layers
            that `rank_pattern` gives another rank, and `alpha_pattern` no alpha, then have the same scale.
        num_experts: E, at least 1.
        ranks: rank of each expert, for `router="gradient"`, in the place of `r` and `num_experts`.
        num_bands: K, frequency bands of the indicator, at least 2.
        kappa: deviation of the finest Gaussian as a fraction of the latent's shorter side, in (0, 1]; "auto" leaves
            it to calibration on training latents, which comes before the adapter is put into a model.
        indicator: "bands", or "released" for adapters that were trained with the authors' released code.
        router: "soft", the router of the paper; "uniform" or "rank_mask" (T-LoRA) to compare it with; "gradient" for
            experts that all act, and whose updates the optimizer routes (`fera.route_updates`).
        router_input: what the router reads: "shares" of the bands as in the paper, "log_shares", "log_energies",
            "timestep", "shares+timestep" or "log_energies+timestep"; see `fera.method.router_input`.
        temperature: the temperature of the router's softmax, above 0.
        router_features: width of the router's hidden layer, at least 1.
        num_virtual_tokens: V, learned vectors before the states of the text, for every caption alike: a soft prompt, in
            PEFT's word. 0 for none.
        expert: config of another PEFT scheme, or a dict of it with its `peft_type`: then each expert is an adapter of
            that scheme (`LoHaConfig(r=4)`, `LoraConfig(use_dora=True)`), and settings of LoRA are left alone. None
            for LoRA, whose experts cost no more than one LoRA. `{"peft_type": "CERSA", "energy": 0.95}` stands for
            LoRAs with `subspace_energy`.
        subspace_energy: confine the experts to the principal subspaces of the weights they adapt, those that hold this
            share of a weight's energy, in (0, 1]; None leaves them free.
        component: name of the denoiser that it belongs to in its pipeline ("transformer_2"); written by fera.
        format_version: the format version of the adapter's files; written by fera.
        base_fingerprint: what the base looks like that the adapter belongs to; written by fera. None skips the
            check when the adapter is put into a model.

    Raises:
        FeraError: a value is out of range, or a setting of LoRA cannot be routed. It is a ValueError.
    """

    r: int = field(default=RANK, metadata={"help": "Rank of one expert."})
    lora_alpha: int | float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Numerator of an expert's scale lora_alpha / r; r * num_experts if unset."}
    )
    num_experts: int = field(default=NUM_EXPERTS, metadata={"help": "Number of experts E."})
    ranks: list[int] | None = field(
        default=None, metadata={"help": "Rank of each expert, for router='gradient'; r for all if unset."}
    )
    num_bands: int = field(default=NUM_BANDS, metadata={"help": "Number of frequency bands K of the indicator."})
    kappa: float | Literal["auto"] = field(
        default=KAPPA,
        metadata={"help": "Finest Gaussian's deviation as a fraction of the latent's shorter side, or 'auto'."},
    )
    indicator: str = field(
        default="bands", metadata={"help": "How the bands are cut: 'bands', or 'released' as the released code does."}
    )
    router: str = field(default="soft", metadata={"help": "The router: 'soft', 'uniform', 'rank_mask' or 'gradient'."})
    router_input: str = field(
        default="shares", metadata={"help": f"What the router reads, one of: {', '.join(ROUTER_INPUTS)}."}
    )
    temperature: float = field(default=TEMPERATURE, metadata={"help": "Temperature of the router's softmax."})
    router_features: int = field(default=ROUTER_FEATURES, metadata={"help": "Width of the router's hidden layer."})
    num_virtual_tokens: int = field(
        default=0, metadata={"help": "Learned vectors before the states of the text; 0 for no soft prompt."}
    )
    expert: PeftConfig | dict[str, Any] | None = field(
        default=None, metadata={"help": "Config of another PEFT scheme for the experts; LoRA if unset."}
    )
    subspace_energy: float | None = field(
        default=None, metadata={"help": "Share of a weight's energy whose subspace the experts are confined to."}
    )
    component: str | None = field(
        default=None, metadata={"help": "Name of its denoiser in the pipeline; written by fera."}
    )
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Format of the adapter's files."})
    base_fingerprint: dict[str, Any] | None = field(
        default=None, repr=False, metadata={"help": "Fingerprint of the base model; written by fera."}
    )

    def __post_init__(self) -> None:
        check_format(self.format_version)
        self.format_version = FORMAT_VERSION  # what an older file is read into is written anew as of this one
        check_ranges(vars(self))
        if self.ranks is not None:
            self.num_experts = len(self.ranks)
        if scheme_of(self.expert) == CERSA:
            self.subspace_energy, self.expert = cersa_energy(self.expert), None
        if self.subspace_energy is not None:
            _check_subspace(self)
        if self.expert is not None:
            _check_only_expert(self)
            self.expert = as_scheme(self.expert)
        elif self.lora_alpha is None:
            self.lora_alpha = sum(self.expert_ranks)
            same_scale = {key: rank * self.num_experts for key, rank in (self.rank_pattern or {}).items()}
            given = self.alpha_pattern or {}
            # The first pattern that matches a layer counts: those that were given come first.
            self.alpha_pattern = given | same_scale | given
        super().__post_init__()
        self._check_routable()
        self.peft_type = PeftType("FERA")

    @property
    def has_gate(self) -> bool:
        """Whether forwards are routed; if not, the experts are one LoRA."""
        return self.router != "gradient"

    @property
    def is_one_lora(self) -> bool:
        """Whether the adapter is a plain LoRA and nothing else."""
        return not self.has_gate and not self.num_virtual_tokens

    @property
    def expert_ranks(self) -> list[int]:
        """Rank of each expert, in layers without a rank of their own."""
        return self.ranks or [self.r] * self.num_experts

    @property
    def chosen_kappa(self) -> float:
        """`kappa` as a number.

        Raises:
            FeraError: it is "auto", and nobody has calibrated it.
        """
        if self.kappa == "auto":
            raise FeraError(
                'kappa="auto" must become a number before the adapter is put into a model, which has no data to '
                "choose it from: train with `fera train`, or take the number that `fera calibrate` or "
                "fera.calibrate_kappa(latents) finds"
            )
        return self.kappa

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-like but for sets."""
        settings = super().to_dict()
        if isinstance(self.expert, PeftConfig):
            settings["expert"] = self.expert.to_dict()
        return settings

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


def _check_subspace(config: FeraConfig) -> None:
    """Experts in subspaces are LoRAs that a gate mixes."""
    energy: Any = config.subspace_energy
    if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1:
        raise FeraError(f"the energy of CERSA experts must be a share above 0, at most 1; got {energy!r}")
    if config.expert is not None:
        raise FeraError("subspace_energy is for experts that are LoRAs: leave it or `expert` out")
    if not config.has_gate:
        raise FeraError("router='gradient' is for experts that are free: leave `expert` and subspace_energy out")
    if config.init_lora_weights is not True:
        raise FeraError("CERSA experts start in their subspaces: leave init_lora_weights out")


def _check_only_expert(config: FeraConfig) -> None:
    """Settings of LoRA would be ignored where the experts are of another scheme."""
    if not config.has_gate:
        raise FeraError("router='gradient' is for experts that are LoRAs: leave `expert` out")
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"):
        value, default = getattr(config, name), {"r": 4, "lora_dropout": 0.0, "use_rslora": False}.get(name)
        if value != default and value not in (None, {}):
            raise FeraError(f"{name}={value!r} is a setting of LoRA, but `expert` names another scheme: set it there")
