"""The whole configuration of a run, and checks across its sections."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from fera.config.adapter import AdapterConfig
from fera.config.compression import CompressConfig
from fera.config.data import DataConfig
from fera.config.optimization import OptimizationConfig, check_rates_of_text
from fera.config.quantization import Quantization
from fera.config.section import Section
from fera.config.stages import stage_steps
from fera.config.text import TextEncoderConfig, TokensConfig
from fera.config.validation import ValidationConfig


class TrainConfig(Section):
    """A training run.

    `load_config` builds one from a file and reports mistakes as `FeraError`; building one directly raises pydantic's
    `ValidationError`. Both are ValueErrors.
    """

    base: str = Field(
        min_length=1,
        description="The pipeline to adapt: a folder, a Hugging Face Hub id, or one file, or a list of files; behind # "
        "the class of another pipeline of its parts ([training.md](training.md#bases)).",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub id.")
    variant: str | None = Field(default=None, description='Variant of the weight files, such as "fp16".')
    quantization: Quantization = Field(
        default="none",
        description="Hold the base's linear layers in few bits ([memory.md](memory.md#quantized-bases-and-precision)); "
        "the adapter stays in float32.",
    )
    output_dir: Path = Field(strict=False, description="Folder of the run: adapter, log, samples, checkpoints.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything random.")
    push_to_hub: bool = Field(
        default=False,
        description="Upload the finished adapter and its card to the Hugging Face Hub ([tracking.md](tracking.md)); "
        "log in by `hf auth login` or HF_TOKEN.",
    )
    hub_model_id: str | None = Field(
        default=None, min_length=1, description="Repository to upload to; the name of output_dir when unset."
    )
    hub_private: bool = Field(default=False, description="Make a new repository private.")
    license: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9.+_-]*$",
        description='License of the adapter, for its card, as the Hub names it, such as "openrail++".',
    )
    # Without a table [data] too, it is the table's own check that says what is missing.
    data: DataConfig = Field(default={}, validate_default=True)
    adapter: AdapterConfig = AdapterConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    tokens: TokensConfig = TokensConfig()
    compress: CompressConfig = CompressConfig()
    train: OptimizationConfig = OptimizationConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def drawn_frames(self) -> int:
        """Frames of a drawing along the way: 1 of a run on pictures."""
        return self.validation.num_frames or max(self.data.num_frames, default=1)

    @property
    def drawn_seconds(self) -> float | None:
        """Length of a drawing along the way; None of a run on pictures or clips."""
        return (self.validation.seconds or max(self.data.seconds)) if self.data.reads_sounds else None

    @field_validator("base", mode="before")
    @classmethod
    def _join_files(cls, value: Any) -> Any:
        is_list = isinstance(value, list) and value and all(isinstance(each, str) and each for each in value)
        return "|".join(value) if is_list else value

    @property
    def has_quantized_base(self) -> bool:
        """Whether the denoiser's linear layers are held in few bits, by `quantization` or by the base's own file."""
        return self.quantization != "none" or self.base.partition("|")[0].endswith(".gguf")

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders learn too."""
        return self.text_encoder.train_text_encoder or self.tokens.placeholder_token is not None

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.data.validation_data_dir is not None and self.data.validation_fraction > 0:
            raise ValueError("data.validation_data_dir and data.validation_fraction are both set; keep one")
        if self.data.stages and self.data.stage_order != "together":
            stage_steps(self.data.stages, self.train.steps)
        if self.train.noise_offset > 0 and self.data.reads_clips:
            raise ValueError("train.noise_offset is for pictures: leave it or data.num_frames out")
        if self.train.noise_offset > 0 and self.data.reads_sounds:
            raise ValueError("train.noise_offset is for pictures: leave it or data.seconds out")
        if self.validation.seconds is not None and not self.data.reads_sounds:
            raise ValueError("validation.seconds is set, but data.seconds is not: set both or neither")
        if self.trains_text and self.data.reads_sounds:
            raise ValueError("text encoders of bases of sound do not train: leave text_encoder and tokens out")
        if self.quantization != "none" and self.base.partition("|")[0].endswith(".gguf"):
            raise ValueError("a base in a GGUF file is quantized already: leave quantization out")
        if self.adapter.full and self.has_quantized_base:
            raise ValueError("adapter.full trains the base's weights, which quantization freezes: leave one out")
        scheme = (self.adapter.plain or self.adapter.expert or {}).get("peft_type", "LORA")
        if self.quantization == "torchao-int4" and self.train.mixed_precision != "bf16":
            raise ValueError('quantization = "torchao-int4" computes in bfloat16: set train.mixed_precision = "bf16"')
        if self.has_quantized_base and scheme != "LORA":
            raise ValueError(f"quantization is for adapters of LoRAs, and this one is of {scheme}: leave it out")
        if self.compress.energy is not None:
            for what, is_set in (
                ("adapter.full, which trains them,", self.adapter.full),
                ("quantization", self.has_quantized_base),
                ("train.offload", self.train.offload != "none"),
            ):
                if is_set:
                    raise ValueError(f"compress.energy holds the base's weights as factors: leave it or {what} out")
        check_offload(self)
        rates = {}
        if self.text_encoder.train_text_encoder:
            rates["text_encoder.learning_rate"] = self.text_encoder.learning_rate
        if self.tokens.placeholder_token is not None:
            rates["tokens.learning_rate"] = self.tokens.learning_rate
        if self.adapter.num_virtual_tokens:
            rates["train.soft_prompt_learning_rate"] = self.train.soft_prompt_learning_rate
        elif self.adapter.start_from is None:
            for name in ("soft_prompt_learning_rate", "soft_prompt_then_freeze"):
                if getattr(self.train, name) != OptimizationConfig.model_fields[name].default:
                    raise ValueError(f"train.{name} is set, but adapter.num_virtual_tokens is 0: set both or neither")
        check_rates_of_text(self.train, rates)
        if self.adapter.routes_updates:
            if self.train.optimizer != "adamw":
                raise ValueError(
                    'adapter.router = "gradient" routes the steps of AdamW: leave train.optimizer out, which is '
                    f"{self.train.optimizer!r}"
                )
            if self.train.router_lr_ratio is not None:
                raise ValueError('adapter.router = "gradient" has no weights: leave train.router_lr_ratio out')
        if not self.adapter.is_routed:
            if self.train.consistency_weight > 0:
                raise ValueError("a baseline has no consistency loss: set train.consistency_weight = 0")
            if self.train.router_lr_ratio is not None:
                raise ValueError("a baseline has no router: leave train.router_lr_ratio out")
            if self.trains_text:
                raise ValueError("a baseline is the denoiser's alone: leave text_encoder and tokens out")
        return self


def check_offload(config: TrainConfig) -> None:
    """Find settings that do not go with a base whose blocks wait elsewhere.

    Raises:
        ValueError: one does not.
    """
    settings, quantization = config.train, config.quantization
    if settings.offload == "none":
        return
    if config.adapter.full:
        raise ValueError("adapter.full trains the base's weights, and those that train.offload moves are frozen")
    if config.has_quantized_base and quantization not in ("4bit", "fp8"):
        raise ValueError(
            f"train.offload cannot move weights of quantization = {quantization!r} without what its package keeps "
            'beside them: set quantization = "4bit" or "fp8", or leave it out'
            if quantization != "none"
            else "train.offload cannot move weights of a GGUF file: leave it out"
        )
    if quantization != "none" and settings.offload == "disk":
        raise ValueError('the base\'s files are not quantized: set train.offload = "blocks", or leave quantization out')
    if quantization == "4bit" and not settings.gradient_checkpointing:
        raise ValueError(
            "bitsandbytes keeps weights in 4 bits from the forward to the backward pass: train.offload would free none "
            "without train.gradient_checkpointing = true"
        )
