"""Which settings go with which optimizer. Reading a configuration needs this, and not PyTorch."""

from typing import TYPE_CHECKING

from fera.hints import hint

if TYPE_CHECKING:
    from fera.training.config import OptimizationConfig

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

# A router at the experts' rate soon leaves the partition that it starts as: docs/evidence.md.
_ROUTER_LR_RATIO = 0.1

# Prodigy multiplies its estimate of the rate by the learning rate; AdamW's would make it stand still.
_LOWEST_PRODIGY_RATE = 0.1


def class_path(optimizer: str) -> str:
    """Dotted path of an optimizer's class."""
    return OPTIMIZERS.get(optimizer, optimizer)


def check_optimizer_settings(settings: "OptimizationConfig") -> None:
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


def router_lr_ratio(settings: "OptimizationConfig") -> float:
    """Learning rate of the router over that of the experts."""
    if settings.router_lr_ratio is not None:
        return settings.router_lr_ratio
    return 1.0 if class_path(settings.optimizer) == OPTIMIZERS["prodigy"] else _ROUTER_LR_RATIO


def _check_prodigy(settings: "OptimizationConfig") -> None:
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


def check_rates_of_text(settings: "OptimizationConfig", rates: dict[str, float]) -> None:
    """Find learning rates of the text encoders that the optimizer cannot have.

    Args:
        settings: of the optimization.
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
