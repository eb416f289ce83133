"""A launch for DeepSpeed: whether it is one, what is refused of it, and what accelerate sees of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import is_deepspeed_available

from fera.config import TrainConfig
from fera.errors import FeraError

_LAUNCH = "ACCELERATE_USE_DEEPSPEED"
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_UNSUPPORTED = (
    ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "deepspeed_config_file", "fera writes DeepSpeed's configuration"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "offload_optimizer_device", "more processes hold less each"),
    ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "offload_param_device", "use FSDP2 where the base does not fit"),
    ("ACCELERATE_DYNAMO_BACKEND", "dynamo_config", "nothing would be compiled"),
)


def is_launched() -> bool:
    """Whether the processes were started for DeepSpeed."""
    return os.environ.get(_LAUNCH, "false").lower() in ("true", "1")


@contextmanager
def launched_plainly() -> Iterator[None]:
    """Have accelerate see a launch for DDP where it is one for DeepSpeed."""
    names = (_LAUNCH, _ACCUMULATION) if is_launched() else ()
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_zero(config: TrainConfig, processes: int) -> None:
    """Refuse what a launch for DeepSpeed asks for and cannot have.

    Args:
        config: the configuration of the run.
        processes: how many were started.

    Raises:
        FeraError: the stage or a setting of the launch is not supported, or the run has settings that are not, under
            ZeRO; or there is one process alone, or no DeepSpeed.
    """
    if (stage := zero_stage()) not in ("1", "2"):
        raise FeraError(
            f"the processes were started for ZeRO {stage}, and fera supports 1 and 2: set zero_stage: 2, or take FSDP2 "
            "where the base does not fit one device (distributed_type: FSDP, fsdp_version: 2)"
        )
    for variable, setting, instead in _UNSUPPORTED:
        if os.environ.get(variable, "none").lower() not in ("none", "no"):
            raise FeraError(f"{setting} is set, and fera does not support it under ZeRO: leave it out; {instead}")
    for variable, setting, key in (
        (_ACCUMULATION, "gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_CLIPPING", "gradient_clipping", "max_grad_norm"),
    ):
        launched, wanted = os.environ.get(variable, "auto"), getattr(config.train, key)
        if launched not in ("auto", "none") and float(launched) != wanted:
            raise FeraError(f"{setting} is {launched}, and train.{key} is {wanted}: leave it out of the launch")
    if refused := _refused(config):
        raise FeraError(
            f"under ZeRO fera trains the denoiser with AdamW, in full precision or bf16, and {refused[0]}; "
            "use DDP for that (distributed_type: MULTI_GPU)"
        )
    if processes < 2:
        raise FeraError("one process was started for DeepSpeed, with none to share with: start fera train alone")
    if not is_deepspeed_available():
        raise FeraError("the processes were started for DeepSpeed, which is missing: pip install 'fera[deepspeed]'")


def _refused(config: TrainConfig) -> list[str]:
    """Settings that are not supported under ZeRO."""
    checks = {
        "text encoders or tokens are trained": config.trains_text,
        f"train.offload is {config.train.offload}": config.train.offload != "none",
        "train.compile is set": config.train.compile != "no",
        "the base is quantized": config.has_quantized_base,
        "compress.energy is set": config.compress.energy is not None,
        "adapter.expert is CERSA": config.adapter.is_confined,
        "adapter.num_virtual_tokens is set": config.adapter.num_virtual_tokens > 0,
        "adapter.router is gradient": config.adapter.routes_updates,
        f"train.optimizer is {config.train.optimizer}": config.train.optimizer != "adamw",
        "train.mixed_precision is fp16": config.train.mixed_precision == "fp16",
    }
    return [what for what, is_set in checks.items() if is_set]


def zero_stage() -> str:
    """The stage that the launch asks for."""
    return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
