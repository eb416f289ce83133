"""The training configuration: one typed definition.

TOML keys, dotted flags, `--help`, validation and docs/configuration.md all come from these classes. How they are
read and written is in `fera.training.settings`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fera.training.optimizer_rules import check_optimizer_settings, check_rates_of_text


class _Section(BaseModel):
    # Strict: "False" is not true and 2.5 is not 2. Frozen: the run's config.toml stays what the run used.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_path(cls, value: Any) -> Any:
        # The system's calls would fail on it one by one, each in a way of its own.
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError(f"{str(value)!r} is no path")
        return value


class DataConfig(_Section):
    """Pictures and their captions; [data.md](data.md) shows the layouts that a folder can have."""

    train_data_dir: Path | None = Field(
        default=None, strict=False, description="Folder of training pictures and captions; this or dataset_name."
    )
    dataset_name: str | None = Field(
        default=None,
        min_length=1,
        description="Dataset of the Hugging Face Hub, or a local path that `datasets.load_dataset` reads, to train on "
        "instead of a folder.",
    )
    dataset_config_name: str | None = Field(
        default=None, min_length=1, description="Configuration of the dataset, where it has several."
    )
    dataset_split: str = Field(
        default="train",
        min_length=1,
        description='Split of the dataset or of a folder of parquet files, or a part of one, such as "train[:100]".',
    )
    validation_data_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of pictures for the held-out loss, laid out as the training folder.",
    )
    validation_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training pictures to hold out when validation_data_dir is unset.",
    )
    image_column: str = Field(
        default="file_name",
        min_length=1,
        description="Column of metadata.* with the picture's path, or of a dataset with the picture, where file_name "
        "also stands for image.",
    )
    caption_column: str = Field(
        default="text", min_length=1, description="Column of metadata.* or of a dataset with the caption."
    )
    caption_lines: Literal["join", "first"] = Field(
        default="join",
        description="What to take of a caption of several lines: all, joined by spaces, or the first.",
    )
    instance_prompt: str | None = Field(
        default=None, min_length=1, description="Caption of pictures that have none of their own."
    )
    trigger_word: str | None = Field(
        default=None,
        min_length=1,
        description="Word that every caption shall have: it replaces [trigger], else it is put in front.",
    )
    shuffle_caption: bool = Field(
        default=False, description="Train on the tags of a caption in several orders; a trigger word stays in front."
    )
    keep_tokens: int = Field(
        default=0, ge=0, le=1000, description="Tags at the start of a caption that shuffle_caption leaves in place."
    )
    caption_separator: str = Field(default=",", min_length=1, max_length=8, description="What separates tags.")
    caption_variants: int = Field(
        default=8, ge=1, le=1000, description="Most orders of one caption that shuffle_caption encodes and draws from."
    )
    allow_missing_captions: bool = Field(
        default=False,
        description="Train pictures without a caption on the empty caption instead of refusing them.",
    )
    skip_bad: bool = Field(
        default=False, description="Skip and report pictures that cannot be read instead of stopping."
    )
    follow_symlinks: bool = Field(
        default=False, description="Read files that are links to somewhere outside of the data folder."
    )
    resolution: int | None = Field(
        default=None,
        ge=8,
        le=16384,
        description="Side of the square training pictures in pixels, and the root of the area of those in buckets; the "
        "base's own size when unset.",
    )
    enable_bucket: bool = Field(
        default=False,
        description="Keep the aspect of pictures, up to 1:4: each goes to the nearest of a few sizes of about the "
        "area of resolution x resolution, and a batch holds pictures of one size. What does not fill a batch is "
        "trained as a smaller one.",
    )
    bucket_reso_steps: int | None = Field(
        default=None,
        ge=1,
        description="Step between the sides of buckets in pixels; about an eighth of the resolution when unset.",
    )
    center_crop: bool = Field(
        default=True,
        description="Crop what sticks out of the training size at the centre; false: at a place drawn once for each.",
    )
    random_flip: bool = Field(default=False, description="Mirror pictures left to right half of the time.")
    mask_path: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of masks, named as the pictures: the loss counts where they are white.",
    )
    alpha_mask: bool = Field(default=False, description="Take the pictures' own opacity for masks.")
    mask_min_value: float = Field(
        default=0.0, ge=0, lt=1, description="Weight of the loss where a mask is black; 1 where it is white."
    )
    class_data_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of class pictures, in any layout, that keep the base as it is: half of what a run sees.",
    )
    class_prompt: str | None = Field(
        default=None, min_length=1, description="Caption of class pictures without one, and prompt to draw them with."
    )
    num_class_images: int = Field(
        default=0, ge=0, le=100_000, description="Draw class pictures with the base until there are so many."
    )
    prior_loss_weight: float = Field(default=1.0, gt=0, description="Weight of the loss on class pictures.")
    cache_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of encoded pictures and captions; output_dir/cache when unset.",
    )

    @property
    def source(self) -> Path | str:
        """Where training pictures come from: a folder, or the name of a dataset."""
        source = self.train_data_dir if self.dataset_name is None else self.dataset_name
        assert source is not None
        return source

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.train_data_dir is None and self.dataset_name is None:
            raise ValueError(
                "missing key data.train_data_dir: set it, or data.dataset_name, in the TOML file or by a flag"
            )
        if self.train_data_dir is not None and self.dataset_name is not None:
            raise ValueError("data.train_data_dir and data.dataset_name are both set; keep one")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError("data.dataset_config_name is set, but data.dataset_name is not: set both or neither")
        if self.bucket_reso_steps is not None and not self.enable_bucket:
            raise ValueError("data.bucket_reso_steps is set, but data.enable_bucket is off: set both or neither")
        if self.alpha_mask and self.mask_path is not None:
            raise ValueError("data.mask_path and data.alpha_mask are both set; keep one")
        if self.mask_min_value and not (self.alpha_mask or self.mask_path):
            raise ValueError("data.mask_min_value is set, but there are no masks: set mask_path or alpha_mask")
        if self.keep_tokens and not self.shuffle_caption:
            raise ValueError("data.keep_tokens is set, but data.shuffle_caption is off: set both or neither")
        if self.class_data_dir is None and (self.class_prompt is not None or self.num_class_images):
            raise ValueError("data.class_prompt and data.num_class_images need data.class_data_dir")
        if self.num_class_images and self.class_prompt is None:
            raise ValueError("data.num_class_images needs data.class_prompt, the prompt to draw with")
        return self


class TextEncoderConfig(_Section):
    """LoRA on the CLIP text encoders, trained beside the denoiser's experts; [text.md](text.md) tells when."""

    train_text_encoder: bool = Field(
        default=False, description="Train LoRA on every CLIP text encoder; T5 and others stay as they are."
    )
    r: int = Field(default=4, ge=1, le=16384, description="Rank.")
    lora_alpha: float | None = Field(
        default=None, gt=0, description="Numerator of the scale, lora_alpha / r; r when unset."
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate.")
    target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "out_proj"],
        min_length=1,
        description="Layers to adapt, by the end of their names.",
    )

    @model_validator(mode="after")
    def _check(self) -> "TextEncoderConfig":
        _check_unused(self, "text_encoder", "train_text_encoder")
        return self


class TokensConfig(_Section):
    """A word that the CLIP text encoders learn (textual inversion); [text.md](text.md) shows how it is used."""

    placeholder_token: str | None = Field(
        default=None,
        min_length=2,
        max_length=100,
        pattern=r"^\S+$",
        description="The new word as captions and prompts have it, such as `<toy>`.",
    )
    initializer_token: str | None = Field(
        default=None, min_length=1, description="A word of one token whose embedding the new one starts from."
    )
    num_vectors: int = Field(default=1, ge=1, le=64, description="Embeddings that the word stands for.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak learning rate of the embeddings.")
    train_frac: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the steps after which the embeddings stay as they are: pivotal tuning.",
    )

    @model_validator(mode="after")
    def _check(self) -> "TokensConfig":
        _check_unused(self, "tokens", "placeholder_token")
        if self.placeholder_token is not None and self.initializer_token is None:
            raise ValueError("tokens.placeholder_token needs tokens.initializer_token, the word that it starts from")
        return self


def _check_unused(section: _Section, name: str, switch: str) -> None:
    """Settings of something that is off are a mistake."""
    if not getattr(section, switch):
        for key, field in type(section).model_fields.items():
            if getattr(section, key) != field.default:
                raise ValueError(f"{name}.{key} is set, but {name}.{switch} is not: set both or neither")


OptimizerValue = str | int | float | bool | list[int | float]
PlainValue = str | int | float | bool | list[str] | dict[str, int | float]


class AdapterConfig(_Section):
    """The adapter, as `fera.FeraConfig` takes it; or a baseline to compare it with, `plain` or `full`."""

    r: int = Field(default=4, ge=1, le=16384, description="Rank of one expert.")
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        description="Numerator of an expert's scale, lora_alpha / r; r * num_experts when unset.",
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the experts.")
    num_experts: int = Field(default=3, ge=1, le=256, description="Number of experts.")
    num_bands: int = Field(default=3, ge=2, le=256, description="Number of frequency bands of the indicator.")
    kappa: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        default=1 / 128,
        description="Finest Gaussian's deviation as a fraction of the latent's shorter side; auto chooses it by what "
        "the indicator tells about the training latents.",
    )
    indicator: Literal["bands", "released"] = Field(
        default="bands", description="How the bands are cut: bands, or released as the authors' released code does."
    )
    router: Literal["soft", "uniform", "rank_mask"] = Field(
        default="soft",
        description="The router: soft, as in the paper; uniform, or rank_mask as T-LoRA, to compare it with.",
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
    temperature: float = Field(default=0.7, gt=0, description="Temperature of the router's softmax.")
    router_features: int = Field(default=64, ge=1, le=65536, description="Width of the router's hidden layer.")
    use_rslora: bool = Field(default=False, description="Scale experts by lora_alpha / sqrt(r) instead.")
    expert: dict[str, str | int | float | bool] | None = Field(
        default=None,
        description='Another PEFT scheme for the experts, by the settings of its config: { peft_type = "LOHA", r = 4 };'
        " r and its neighbours here are then left alone.",
    )
    target_modules: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Layers to adapt, by the end of their names; the attention's when unset.",
    )
    plain: dict[str, PlainValue] | None = Field(
        default=None,
        description='Baseline: a stock PEFT adapter without routing, by its settings: { peft_type = "LORA", r = 12 }; '
        "of the other keys here only target_modules then applies.",
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
    def starts_as_partition(self) -> bool:
        """Whether there is a router to start from training latents."""
        return self.is_routed and self.router == "soft" and self.router_init == "partition" and self.num_experts > 1

    @model_validator(mode="after")
    def _check(self) -> "AdapterConfig":
        if self.is_routed:
            return self
        baseline = "adapter.full" if self.full else "adapter.plain"
        applies = {"full"} if self.full else {"plain", "target_modules"}
        for name, field in type(self).model_fields.items():
            if name not in applies and getattr(self, name) != field.default:
                raise ValueError(f"{baseline} is a baseline without routed experts: leave adapter.{name} out")
        return self


class OptimizationConfig(_Section):
    """The optimization."""

    steps: int = Field(default=1000, ge=1, description="Optimizer steps of the run.")
    batch_size: int = Field(default=8, ge=1, le=65536, description="Pictures a forward and process.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forwards to add up for one optimizer step.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, slower.")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        default="no", description="Precision of the frozen base; adapter and router stay in float32."
    )
    optimizer: str = Field(
        default="adamw",
        min_length=1,
        description="adamw, adamw8bit, prodigy, adafactor, adamw_schedulefree, or the dotted path of a class, which is "
        "imported: [training.md](training.md).",
    )
    optimizer_args: dict[str, OptimizerValue] | None = Field(
        default=None, description="Further arguments of the optimizer: { momentum = 0.9 }."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate; 1.0 for prodigy.")
    router_learning_rate: float | None = Field(
        default=None, ge=0, description="Peak learning rate of the router; learning_rate when unset."
    )
    loraplus_lr_ratio: float = Field(
        default=1.0,
        ge=1,
        description="LoRA+: learning rate of the experts' B over that of A, which is learning_rate; 16 is common.",
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = Field(default="constant_with_warmup", description="Course of the learning rate, as in diffusers.")
    lr_warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    adam_beta1: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Decay of the gradient's mean; adam_* are for adamw, adamw8bit, prodigy and adamw_schedulefree.",
    )
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the gradient's square.")
    adam_weight_decay: float = Field(default=0.01, ge=0, description="Weight decay.")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="Added to the root of the gradient's square.")
    use_ema: bool = Field(
        default=False,
        description="Measure, draw with and keep an exponential moving average of the trained weights.",
    )
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="Decay of the average; after step n at most n / (n + 9)."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    consistency_weight: float = Field(
        default=0.1,
        ge=0,
        description="Weight of the frequency-energy consistency loss; 0 saves its forward of the base.",
    )
    consistency_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the steps whose batches have the consistency loss, weighted up by as much; on the others "
        "its forward of the base is saved.",
    )
    caption_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of captions replaced by the empty one, which guidance relies on.",
    )
    noise_offset: float = Field(default=0.0, ge=0, description="Strength of noise shared by all pixels of a channel.")
    prediction_type: Literal["auto", "epsilon", "v_prediction", "flow_prediction"] = Field(
        default="auto", description="What the base predicts; auto reads it from the base's scheduler."
    )
    snr_gamma: float | None = Field(
        default=None,
        gt=0,
        description="Min-SNR weighting of the loss, 5.0 is common; epsilon and v_prediction only.",
    )
    debiased_estimation_loss: bool = Field(
        default=False,
        description="Weight the loss by 1 / sqrt(SNR) (arXiv 2310.08442); epsilon and v_prediction only.",
    )
    weighting_scheme: Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"] = Field(
        default="logit_normal",
        description="How noise levels are drawn or weighted, as in diffusers; flow_prediction only.",
    )
    logit_mean: float = Field(
        default=0.0,
        description="Mean of logit_normal; above 0 favours little noise, as in diffusers' scripts.",
    )
    logit_std: float = Field(default=1.0, gt=0, description="Deviation of logit_normal.")
    mode_scale: float = Field(default=1.29, description="Scale of the mode scheme.")
    max_skipped_steps: int = Field(
        default=10,
        ge=0,
        description="Steps in a row to skip because their loss or gradient is not finite; one more ends the run, with "
        "the samples named.",
    )
    logging_steps: int = Field(
        default=10, ge=1, description="Steps between lines of log.jsonl; each averages over them."
    )
    checkpointing_steps: int = Field(default=500, ge=1, description="Steps between checkpoints.")
    checkpoints_total_limit: int = Field(default=2, ge=1, description="Checkpoints to keep; older ones are removed.")
    report_to: list[Literal["tensorboard", "wandb", "trackio", "all", "none"]] | None = Field(
        default=None,
        description="Trackers that show the run ([tracking.md](tracking.md)): one or several, all that are installed, "
        "or none; TensorBoard where it is installed when unset.",
    )
    logging_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of TensorBoard's files, each run in a folder of its own name; output_dir/logs when unset.",
    )
    tracker_project_name: str = Field(
        default="fera", min_length=1, description="Project that the run belongs to in wandb and trackio."
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "OptimizationConfig":
        if self.lr_warmup_steps > self.steps:
            raise ValueError(f"train.lr_warmup_steps ({self.lr_warmup_steps}) exceeds train.steps ({self.steps})")
        check_optimizer_settings(self)
        if self.ema_decay != type(self).model_fields["ema_decay"].default and not self.use_ema:
            raise ValueError("train.ema_decay is set, but train.use_ema is off: set both or neither")
        if self.snr_gamma is not None and self.debiased_estimation_loss:
            raise ValueError("train.snr_gamma and train.debiased_estimation_loss both weight the loss by SNR; keep one")
        if self.report_to is not None and "none" in self.report_to and len(set(self.report_to)) > 1:
            raise ValueError('train.report_to has "none" and others; keep one')
        return self


class ValidationConfig(_Section):
    """Pictures and losses along the way, always at the same seeds, noise and timesteps."""

    prompts: list[str] = Field(default=[], description="Prompts to draw at the start, at the end, and in between.")
    negative_prompt: str = Field(default="", description="Negative prompt of all of them.")
    steps: int = Field(default=500, ge=0, description="Steps between drawings; 0: only at the start and at the end.")
    num_inference_steps: int = Field(default=24, ge=1, description="Denoising steps of a drawing.")
    guidance_scale: float = Field(default=2.0, ge=0, description="Guidance of a drawing.")
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the first drawing, counting up from there, and of the held-out noise.",
    )
    loss_steps: int = Field(
        default=0, ge=0, description="Steps between held-out losses; 0: only at the start and at the end."
    )
    loss_samples: int = Field(
        default=64, ge=1, le=1_000_000, description="Samples of one held-out loss; pictures repeat if they are fewer."
    )


class TrainConfig(_Section):
    """A training run.

    `load_config` builds one from a file and reports mistakes as `FeraError`; building one directly raises pydantic's
    `ValidationError`. Both are ValueErrors.
    """

    base: str = Field(min_length=1, description="The pipeline to adapt: a folder or a Hugging Face Hub id.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub id.")
    variant: str | None = Field(default=None, description='Variant of the weight files, such as "fp16".')
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="Hold the base's linear layers in 8 bits (LLM.int8) or 4 (NF4), by bitsandbytes; the adapter stays "
        "in float32.",
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
    train: OptimizationConfig = OptimizationConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders learn too."""
        return self.text_encoder.train_text_encoder or self.tokens.placeholder_token is not None

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.data.validation_data_dir is not None and self.data.validation_fraction > 0:
            raise ValueError("data.validation_data_dir and data.validation_fraction are both set; keep one")
        if self.adapter.full and self.quantization != "none":
            raise ValueError("adapter.full trains the base's weights, which quantization freezes: leave one out")
        scheme = (self.adapter.plain or self.adapter.expert or {}).get("peft_type", "LORA")
        if self.quantization != "none" and scheme != "LORA":
            raise ValueError(f"quantization is for adapters of LoRAs, and this one is of {scheme}: leave it out")
        rates = {}
        if self.text_encoder.train_text_encoder:
            rates["text_encoder.learning_rate"] = self.text_encoder.learning_rate
        if self.tokens.placeholder_token is not None:
            rates["tokens.learning_rate"] = self.tokens.learning_rate
        check_rates_of_text(self.train, rates)
        if not self.adapter.is_routed:
            if self.train.consistency_weight > 0:
                raise ValueError("a baseline has no consistency loss: set train.consistency_weight = 0")
            if self.train.router_learning_rate is not None:
                raise ValueError("a baseline has no router: leave train.router_learning_rate out")
            if self.trains_text:
                raise ValueError("a baseline is the denoiser's alone: leave text_encoder and tokens out")
        return self
