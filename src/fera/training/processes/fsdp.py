"""A run in several processes: which layouts there are, and what FSDP2 asks for.

Under DDP each process holds all weights, and nothing here is needed. Under ZeRO too; it shares the optimizer's state
(`zero.py`). Under FSDP2 each holds a shard of each weight, the frozen base's among them, and puts a block together
while it is used. The weights that train and the optimizer's state are gathered before they are written, so that a
checkpoint says nothing of the layout it was saved under: any other goes on from it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.models.components import repeated_blocks
from fera.pipelines.block_offload import waiting_names
from fera.training.processes.zero import ZeroOptimizer, share
from fera.training.processes.zero_launch import check_zero, is_launched, launched_plainly

_OTHERS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism_config",
}


def find_processes() -> PartialState:
    """This process among those of the run; the first call lets them find each other."""
    # Left to itself accelerate looks for others on GPUs alone, and each process takes itself for the only one.
    with launched_plainly():
        return PartialState(cpu=_is_set("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def check_launch(config: TrainConfig) -> None:
    """Refuse what the processes were started for and cannot do, before anything is loaded.

    Args:
        config: the configuration of the run.

    Raises:
        FeraError: the layout is not supported, or the run has settings that are not, under it, or the processes have
            not found each other.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    for variable, name in _OTHERS.items():
        if _is_set(variable):
            raise FeraError(
                f"the processes were started for {name}, which fera does not support: take DDP, or FSDP2 where the "
                "base does not fit one device (distributed_type: MULTI_GPU, or FSDP with fsdp_version: 2)"
            )
    if started != find_processes().num_processes:
        raise FeraError(
            f"{started} processes were started, but they have not found each other. On a machine without GPUs set "
            "ACCELERATE_USE_CPU=true in the environment"
        )
    if is_launched():
        check_zero(config, started)
    if _is_set("ACCELERATE_USE_FSDP"):
        _check_fsdp(config)


def _check_fsdp(config: TrainConfig) -> None:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise FeraError("the processes were started for FSDP 1, which fera does not support: set fsdp_version: 2")
    for variable, setting, instead in (
        ("FSDP_OFFLOAD_PARAMS", "fsdp_offload_params", "more processes hold less each"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "fsdp_cpu_ram_efficient_loading", "each process reads the base"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "fsdp_activation_checkpointing", "use train.gradient_checkpointing"),
    ):
        if _is_set(variable):
            raise FeraError(f"{setting} is set, and fera does not support it under FSDP2: leave it out; {instead}")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise FeraError("dynamo_config is set, and fera does not support it under FSDP2: leave it out")
    if refused := _refused(config):
        raise FeraError(
            f"under FSDP2 fera trains routed LoRA experts with AdamW, in full precision or bf16, and {refused[0]}; use "
            "DDP for that (distributed_type: MULTI_GPU)"
        )


def _refused(config: TrainConfig) -> list[str]:
    """Settings that are not supported under FSDP2."""
    adapter, settings = config.adapter, config.train
    checks = {
        "adapter.full is set": adapter.full,
        "adapter.plain is set": adapter.plain is not None,
        "adapter.expert is set": adapter.expert is not None,
        "compress.energy is set": config.compress.energy is not None,
        "adapter.num_virtual_tokens is set": adapter.num_virtual_tokens > 0,
        "adapter.router is gradient": adapter.routes_updates,
        "text encoders or tokens are trained": config.trains_text,
        "the base is quantized": config.has_quantized_base,
        f"train.optimizer is {settings.optimizer}": settings.optimizer != "adamw",
        "train.use_ema is set": settings.use_ema,
        f"train.offload is {settings.offload}": settings.offload != "none",
        "train.compile is set": settings.compile != "no",
        "train.mixed_precision is fp16": settings.mixed_precision == "fp16",
        "validation.prompts are set (draw from checkpoints by fera generate)": bool(config.validation.prompts),
    }
    return [what for what, is_set in checks.items() if is_set]


def arrange(accelerator: Accelerator) -> None:
    """Have accelerate share weights where the processes were started for FSDP2.

    Args:
        accelerator: the accelerator of the run, fresh.
    """
    state: Any = accelerator.state
    if _is_set("ACCELERATE_USE_FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate takes FSDP for a matter of GPUs and goes on as DDP without a word; PyTorch shards on CPUs too.
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if is_sharded(accelerator):
        # As in one process: parameters have the precision they compute in, and autocast does the rest.
        state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a shard of each weight, so that all must take part in every forward."""
    return accelerator.is_fsdp2


def shard(
    accelerator: Accelerator, denoiser: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> tuple[Any, Any]:
    """The denoiser and the optimizer as they are used, in any layout.

    Under FSDP2 the blocks that the denoiser repeats are put together one at a time, unless the launch names others.

    Args:
        accelerator: the accelerator of the run.
        denoiser: it holds what trains.
        optimizer: over that.
        max_grad_norm: what gradients will be clipped to.

    Raises:
        FeraError: the launch names blocks that the denoiser does not have.
    """
    if is_launched():
        return share(accelerator, denoiser, optimizer, max_grad_norm)
    if not is_sharded(accelerator):
        if waiting := waiting_names(denoiser):
            # Frozen and equal everywhere: no process has to send them to the others, nor have them on its device.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(denoiser, waiting)
        return accelerator.prepare(denoiser, optimizer, device_placement=[not waiting, True])
    for weight in denoiser.parameters():
        weight.data = weight.data.contiguous()  # FSDP2 takes no convolutions that lie channels last
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted(repeated_blocks(denoiser))
    try:
        return accelerator.prepare(denoiser, optimizer)
    except ValueError as error:
        raise FeraError(f"FSDP2 cannot share this denoiser's weights: {error}") from error


def clip_gradients(
    accelerator: Accelerator, optimizer: Any, parameters: Sequence[Tensor], max_grad_norm: float
) -> Tensor | None:
    """Clip the gradients that the next step uses.

    Args:
        accelerator: the accelerator of the run.
        optimizer: as `shard` gave it.
        parameters: all of the optimizer's.
        max_grad_norm: as `shard` was told.

    Returns:
        Their norm before, over all processes.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.gradient_norm()
    norm = accelerator.clip_grad_norm_(parameters, max_grad_norm)
    return whole(norm) if norm is not None else None


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together of its shards; itself where it has none. All processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; itself where it has none."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Have whole tensors in the place of the weights that train, to be saved; no forward meanwhile.

    All processes enter together.

    Args:
        model: sharded or not.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the last forward may have left whole weights, which are not those that train
    held: list[tuple[nn.Module, str, Any]] = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor) and parameter.requires_grad
    ]
    for module, name, parameter in held:
        module._parameters[name] = nn.Parameter(parameter.detach().full_tensor())
    try:
        yield
    finally:
        for module, name, parameter in held:
            module._parameters[name] = parameter


def sharded_like(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors as a model's parameters are, for its `load_state_dict`: sharded where they are.

    Args:
        model: sharded or not.
        tensors: the same in all processes.
    """
    parameter = next((one for one in model.parameters() if isinstance(one, DTensor)), None)
    if parameter is None:
        return tensors
    return {name: _shard(tensor.to(parameter.device), parameter) for name, tensor in tensors.items()}


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors. All processes call it together."""
    entries = {
        number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def state_for(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimizer's state dict of whole tensors as its parameters are: sharded, and in memory, as they are.

    Args:
        state: as `whole_state` gives it.
        parameters: all of the optimizer's, in its order.
    """

    def fit(value: Any, parameter: Tensor) -> Any:
        if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
            return _shard(value.to(parameter.device, parameter.dtype), parameter)
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
            # Fused optimizers take the order in memory for granted; layouts differ in where channels are.
            return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
        return value

    entries = {
        number: {name: fit(value, parameters[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _shard(value: Tensor, parameter: DTensor) -> DTensor:
    # No process sends: all have the whole. FSDP2 shards all parameters alike.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
