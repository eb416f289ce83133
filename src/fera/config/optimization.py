"""Section `train`: the optimization, and which settings go with which optimizer."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fera.config.section import Section
from fera.support.hints import hint

# A short name to the class that it stands for. Any other class goes by its dotted path.
OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "prodigy": "prodigyopt.Prodigy",
    "adafactor": "torch.optim.Adafactor",
    "adamw_schedulefree": "schedulefree.AdamWScheduleFree",
}

# Those that take betas, epsilon and weight decay as AdamW does, and so follow the adam_* settings.
ADAM_LIKE = frozenset({"adamw", "adamw8bit", "prodigy", "adamw_schedulefree"})
ADAM_SETTINGS = ("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon")

# Schedules that leave the rate where it is, but for a warm-up.
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")
# Settings that one schedule alone has.
_ONLY_SCHEDULE = {"lr_num_cycles": "cosine_with_restarts", "lr_power": "polynomial"}
# Where diffusers' polynomial schedule ends, whatever it starts from.
LOWEST_POLYNOMIAL_RATE = 1e-7

# A router at the experts' rate soon leaves the partition that it starts as: docs/evidence.md.
_ROUTER_LR_RATIO = 0.1

# Prodigy multiplies its estimate of the rate by the learning rate; AdamW's would make it stand still.
_LOWEST_PRODIGY_RATE = 0.1


OptimizerValue = str | int | float | bool | list[int | float]


class OptimizationConfig(Section):
    """The optimization."""

    steps: int = Field(default=1000, ge=1, description="Optimizer steps of the run.")
    batch_size: int = Field(default=8, ge=1, le=65536, description="Pictures a forward and process.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forwards to add up for one optimizer step.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, slower.")
    compile: Literal["no", "blocks", "denoiser"] = Field(
        default="no",
        description="Compile steps by torch.compile: the blocks that the denoiser repeats, or all of it. Faster after "
        "a first step that takes up to minutes: [performance.md](performance.md).",
    )
    offload: Literal["none", "blocks", "disk"] = Field(
        default="none",
        description="Where the blocks of the frozen base wait for their use: on the device, in host memory, or in the "
        "base's own files: [memory.md](memory.md#a-base-larger-than-the-device).",
    )
    blocks_on_device: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Blocks on the device at a time where they are offloaded; auto is 2, one in use and one on its "
        "way.",
    )
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
    router_lr_ratio: float | None = Field(
        default=None,
        ge=0,
        description="Learning rate of the router over learning_rate; 0 keeps it as it starts. Unset: 0.1, and 1 with "
        "prodigy, which has one rate for all.",
    )
    loraplus_lr_ratio: float = Field(
        default=1.0,
        ge=1,
        description="LoRA+: learning rate of the experts' B over that of A, which is learning_rate; 16 is common.",
    )
    soft_prompt_learning_rate: float = Field(
        default=1e-3, gt=0, description="Learning rate of the soft prompt, with adapter.num_virtual_tokens."
    )
    soft_prompt_then_freeze: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the steps in which the soft prompt learns alone; then it stays as it is, and all else "
        "learns. 0: all learn together.",
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = Field(default="constant_with_warmup", description="Course of the learning rate, as in diffusers.")
    lr_warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    lr_num_cycles: int = Field(
        default=1,
        ge=1,
        description="Times that cosine_with_restarts falls from the peak to 0; with 1 it has no restart.",
    )
    lr_power: float = Field(
        default=1.0, gt=0, description="Power of the polynomial schedule; with 1 it is a straight line, as linear."
    )
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
        default=0.0,
        ge=0,
        description="Weight of the frequency-energy consistency loss, 0.1 in the paper; above 0 a step has one more "
        "forward, of the base.",
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
        check_schedule_settings(self)
        check_optimizer_settings(self)
        if self.ema_decay != type(self).model_fields["ema_decay"].default and not self.use_ema:
            raise ValueError("train.ema_decay is set, but train.use_ema is off: set both or neither")
        if self.blocks_on_device != "auto" and self.offload == "none":
            raise ValueError('train.blocks_on_device is set, but train.offload is none: set train.offload = "blocks"')
        if self.offload != "none" and self.compile == "denoiser":
            raise ValueError('offloaded blocks come one by one: set train.compile = "blocks", or leave it out')
        if self.snr_gamma is not None and self.debiased_estimation_loss:
            raise ValueError("train.snr_gamma and train.debiased_estimation_loss both weight the loss by SNR; keep one")
        if self.report_to is not None and "none" in self.report_to and len(set(self.report_to)) > 1:
            raise ValueError('train.report_to has "none" and others; keep one')
        return self


def class_path(optimizer: str) -> str:
    """Dotted path of an optimizer's class."""
    return OPTIMIZERS.get(optimizer, optimizer)


def check_optimizer_settings(settings: OptimizationConfig) -> None:
    """Find settings that do not go together.

    Raises:
        ValueError: the optimizer is unknown, or another setting does not apply to it.
    """
    name = settings.optimizer
    if name not in OPTIMIZERS and "." not in name:
        raise ValueError(
            f"train.optimizer is {name!r}, expected one of {', '.join(OPTIMIZERS)}, or the dotted path of a class"
            f"{hint(name, OPTIMIZERS)}"
        )
    if name not in ADAM_LIKE:
        fields = type(settings).model_fields
        for field in ADAM_SETTINGS:
            if getattr(settings, field) != fields[field].default:
                raise ValueError(
                    f"train.{field} does not apply to train.optimizer = {name!r}: leave it out, and give the "
                    "optimizer's own settings in train.optimizer_args"
                )
    if class_path(name) == OPTIMIZERS["prodigy"]:
        _check_prodigy(settings)


def check_schedule_settings(settings: OptimizationConfig) -> None:
    """Find settings of the learning rate's course that the chosen schedule does not have.

    Raises:
        ValueError: one would be ignored, or the schedule cannot be had with it.
    """
    name, fields = settings.lr_scheduler, type(settings).model_fields
    for field, schedule in _ONLY_SCHEDULE.items():
        if getattr(settings, field) != fields[field].default and name != schedule:
            raise ValueError(
                f'train.{field} is set, but train.lr_scheduler is {name}: set train.lr_scheduler = "{schedule}", or '
                f"leave train.{field} out"
            )
    if settings.lr_warmup_steps and name == "constant":
        raise ValueError(
            "train.lr_warmup_steps is set, but train.lr_scheduler is constant, which has no warm-up: set "
            'train.lr_scheduler = "constant_with_warmup"'
        )
    if name == "polynomial":
        if settings.learning_rate <= LOWEST_POLYNOMIAL_RATE:
            raise ValueError(
                f"train.learning_rate is {settings.learning_rate:g}, but the polynomial schedule ends at "
                f"{LOWEST_POLYNOMIAL_RATE:g}: take a higher rate or another schedule"
            )
        if settings.lr_warmup_steps == settings.steps:
            raise ValueError(
                f"train.lr_warmup_steps is all of train.steps ({settings.steps}), which leaves the polynomial schedule "
                "no step to fall: warm up for fewer, or take another schedule"
            )


def router_lr_ratio(settings: OptimizationConfig) -> float:
    """Learning rate of the router over that of the experts."""
    if settings.router_lr_ratio is not None:
        return settings.router_lr_ratio
    return 1.0 if class_path(settings.optimizer) == OPTIMIZERS["prodigy"] else _ROUTER_LR_RATIO


def _check_prodigy(settings: OptimizationConfig) -> None:
    """Prodigy estimates one learning rate for all parameters."""
    if settings.learning_rate < _LOWEST_PRODIGY_RATE:
        raise ValueError(
            f"train.learning_rate is {settings.learning_rate:g}, but Prodigy finds the rate itself and multiplies it "
            "by this one: set train.learning_rate = 1.0"
        )
    if settings.loraplus_lr_ratio != 1:
        raise ValueError("Prodigy has one learning rate for all parameters: leave train.loraplus_lr_ratio out")
    if settings.router_lr_ratio not in (None, 1):
        # At 0 it would still decay the router's weights.
        raise ValueError("Prodigy has one learning rate for all parameters: leave train.router_lr_ratio out")


def check_rates_of_text(settings: OptimizationConfig, rates: dict[str, float]) -> None:
    """Find learning rates of the text encoders that the optimizer cannot have.

    Args:
        settings: the settings of the optimization.
        rates: name of a setting to its value.

    Raises:
        ValueError: the optimizer has one rate for all.
    """
    if class_path(settings.optimizer) != OPTIMIZERS["prodigy"]:
        return
    for name, rate in rates.items():
        if rate != settings.learning_rate:
            raise ValueError(
                f"{name} is {rate:g}, but Prodigy has one learning rate for all parameters: set it to "
                f"{settings.learning_rate:g}, as train.learning_rate"
            )
