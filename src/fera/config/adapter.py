"""Section `adapter`: routed experts, or a baseline."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fera.config.section import Section
from fera.method.settings import KAPPA, NUM_BANDS, NUM_EXPERTS, RANK, ROUTER_FEATURES, TEMPERATURE
from fera.support.patterns import PatternError, ending

PlainValue = str | int | float | bool | list[str] | dict[str, int | float]


class AdapterConfig(Section):
    """The adapter, as `fera.FeraConfig` takes it; or a baseline to compare it with, `plain` or `full`."""

    component: str | None = Field(
        default=None,
        min_length=1,
        description="Denoiser to train, where a base has one for each range of noise: transformer (more noise) or "
        "transformer_2 (less) of Wan 2.2 14B.",
    )
    r: int = Field(default=RANK, ge=1, le=16384, description="Rank of one expert.")
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        description="Numerator of an expert's scale, lora_alpha / r; r * num_experts when unset.",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=16384)]] = Field(
        default={},
        description="Layers whose experts have another rank than r, by patterns as in target_modules, the first that "
        'matches: { conv1 = 2, "transformer_blocks.0-7.*" = 8 }.',
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="Layers with another lora_alpha, likewise; with lora_alpha unset, those of rank_pattern keep the "
        "scale of the others.",
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the experts.")
    num_experts: int = Field(default=NUM_EXPERTS, ge=1, le=256, description="Number of experts.")
    num_bands: int = Field(default=NUM_BANDS, ge=2, le=256, description="Number of frequency bands of the indicator.")
    kappa: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        default=KAPPA,
        description="Finest Gaussian's deviation as a fraction of the latent's shorter side; auto chooses it by what "
        "the indicator tells about the training latents.",
    )
    indicator: Literal["bands", "released"] = Field(
        default="bands", description="How the bands are cut: bands, or released as the authors' released code does."
    )
    ranks: list[Annotated[int, Field(ge=1, le=16384)]] | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Rank of each expert, with router = gradient, in the place of r and num_experts: [16, 4, 2].",
    )
    router: Literal["soft", "uniform", "rank_mask", "gradient"] = Field(
        default="soft",
        description="The router: soft, as in the paper; uniform, or rank_mask as T-LoRA, to compare it with; gradient, "
        "which lets all experts act and routes the optimizer's steps ([schemes.md](schemes.md#routing-by-gradients)).",
    )
    top_k: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Experts of each layer that a step updates, with router = gradient; moments of all are updated.",
    )
    router_input: Literal[
        "shares", "log_shares", "log_energies", "timestep", "shares+timestep", "log_energies+timestep"
    ] = Field(
        default="shares+timestep",
        description="What the router reads: energies of the bands, the timestep, or both; the paper's reads shares.",
    )
    router_init: Literal["partition", "random"] = Field(
        default="partition",
        description="How the router starts: as a soft partition of noisy training latents; random as in the paper.",
    )
    router_entropy: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="Mean entropy of the gate that router_init = partition starts with, as a fraction of the uniform "
        "gate's: how soft the partition is.",
    )
    temperature: float = Field(default=TEMPERATURE, gt=0, description="Temperature of the router's softmax.")
    router_features: int = Field(
        default=ROUTER_FEATURES, ge=1, le=65536, description="Width of the router's hidden layer."
    )
    num_virtual_tokens: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Learned vectors before the states of every caption, a soft prompt "
        "([text.md](text.md#soft-prompts)); 0 for none.",
    )
    use_rslora: bool = Field(default=False, description="Scale experts by lora_alpha / sqrt(r) instead.")
    expert: dict[str, str | int | float | bool] | None = Field(
        default=None,
        description='Another PEFT scheme for the experts, by the settings of its config: { peft_type = "LOHA", r = 4 };'
        " r and its neighbours here are then left alone. LoRAs of rank r inside of the principal subspaces of weights: "
        '{ peft_type = "CERSA", energy = 0.95 } ([schemes.md](schemes.md#principal-subspaces)).',
    )
    target_modules: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Layers to adapt, by the end of their names, where * stands for anything and a part 8-23 for "
        "numbers; * alone for all layers, all-linear for the linear ones, attention for those of the attention; when "
        "unset, those that [models.md](models.md) lists for the denoiser.",
    )
    exclude_modules: list[str] = Field(default=[], description="Layers to leave out of these, likewise.")
    blocks: list[str] = Field(
        default=[],
        description='Blocks that the layers must lie in: "8-23" for every list of blocks, or '
        '"transformer_blocks.8-23"; all when empty.',
    )
    start_from: str | None = Field(
        default=None,
        min_length=1,
        description="What the experts start from: a fera adapter, which goes on as it is; or a plain LoRA, a file or a "
        "folder in the naming of diffusers, PEFT, kohya or ComfyUI, which each expert becomes; fresh when unset.",
    )
    plain: dict[str, PlainValue] | None = Field(
        default=None,
        description='Baseline: a stock PEFT adapter without routing, by its settings: { peft_type = "LORA", r = 12 }; '
        "of the other keys here only target_modules, exclude_modules and blocks then apply.",
    )
    full: bool = Field(
        default=False,
        description="Baseline: train all weights of the denoiser; no other key here then applies.",
    )

    @property
    def is_routed(self) -> bool:
        """Whether this is routed experts, and no baseline."""
        return self.plain is None and not self.full

    @property
    def routes_updates(self) -> bool:
        """Whether it is the optimizer's steps that are routed, and no forward."""
        return self.is_routed and self.router == "gradient"

    @property
    def is_confined(self) -> bool:
        """Whether its experts are LoRAs inside of principal subspaces."""
        return self.is_routed and str((self.expert or {}).get("peft_type")).upper() == "CERSA"

    @property
    def starts_as_partition(self) -> bool:
        """Whether there is a router to start from training latents."""
        return self.is_routed and self.router == "soft" and self.router_init == "partition" and self.num_experts > 1

    @field_validator("target_modules", "exclude_modules", "blocks", mode="before")
    @classmethod
    def _take_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("target_modules", "exclude_modules", "blocks", "rank_pattern", "alpha_pattern")
    @classmethod
    def _check_patterns(cls, value: Iterable[str] | None, info: ValidationInfo) -> Any:
        for pattern in value or ():
            try:
                ending(pattern)
            except PatternError as error:
                raise ValueError(f"adapter.{info.field_name}: {error}") from None
        return value

    @model_validator(mode="after")
    def _check(self) -> "AdapterConfig":
        if self.is_routed:
            _check_gradient(self)
            return self
        baseline = "adapter.full" if self.full else "adapter.plain"
        applies = {"full"} if self.full else {"plain", "target_modules", "exclude_modules", "blocks"}
        for name, field in type(self).model_fields.items():
            if name not in applies and getattr(self, name) != field.default:
                raise ValueError(f"{baseline} is a baseline without routed experts: leave adapter.{name} out")
        return self


# Settings of a gate and what it reads; bands are the consistency loss's too.
_OF_A_GATE = ("router_input", "router_init", "router_entropy", "temperature", "router_features")


def _check_gradient(settings: AdapterConfig) -> None:
    """Find settings that do not go with how updates are routed."""
    fields = type(settings).model_fields

    def is_set(name: str) -> bool:
        return bool(getattr(settings, name) != fields[name].default)

    if settings.router != "gradient":
        for name in ("ranks", "top_k"):
            if is_set(name):
                raise ValueError(f'adapter.{name} is for adapter.router = "gradient": set that, or leave it out')
        return
    for name in (*_OF_A_GATE, "expert"):
        if is_set(name):
            raise ValueError(f'adapter.router = "gradient" has LoRA experts and no gate: leave adapter.{name} out')
    if settings.ranks is not None:
        for name in ("r", "num_experts", "rank_pattern"):
            if is_set(name):
                raise ValueError(f"adapter.ranks says the rank of each expert: leave adapter.{name} out")
    experts = settings.num_experts if settings.ranks is None else len(settings.ranks)
    if settings.top_k > experts:
        raise ValueError(f"adapter.top_k is {settings.top_k}, but there are {experts} experts in a layer")
