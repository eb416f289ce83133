"""Layers come and go, and are saved and merged, while a pipeline's weights are offloaded.

What offloads weights has hooks on the layers there were: new layers would be left where they are, and with sequential
offloading they would be put beside weights that are not there at all. What waits on a disk is freed memory until then.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from fera.tuner.residence import OFFLOADING, TRACKERS


@contextmanager
def weights_in_place(target: Any) -> Iterator[None]:
    """Take the offloading of a pipeline away inside the block, and put it over all its layers after it.

    Blocks may be nested; the outermost one does it.

    Args:
        target: a diffusers pipeline, or a denoiser: of that, groups are brought back, and accelerate's hooks, which
            belong to its pipeline, are left alone.
    """
    if isinstance(target, nn.Module):
        with _groups_in_place(target):
            yield
        return
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        yield
        return
    with ExitStack() as stack:
        for component in components.values():
            if isinstance(component, nn.Module):
                stack.enter_context(_groups_in_place(component))
        with _hooks_away(target):
            yield


@contextmanager
def _hooks_away(pipe: Any) -> Iterator[None]:
    """Take accelerate's hooks off a pipeline's components inside the block."""
    if not hasattr(pipe, "hf_device_map"):
        yield
        return
    # What diffusers itself does around load_lora_weights.
    from diffusers.loaders.lora_base import _func_optionally_disable_offloading

    by_model, sequential, _ = _func_optionally_disable_offloading(pipe)
    try:
        yield
    finally:
        device = getattr(pipe, "_offload_device", None)
        if by_model:
            pipe.enable_model_cpu_offload(device=device)
        elif sequential:
            pipe.enable_sequential_cpu_offload(device=device)


@contextmanager
def _groups_in_place(component: nn.Module) -> Iterator[None]:
    """Bring the groups that diffusers offloads back to where they wait inside the block, and make them anew after it.

    Diffusers makes groups anew around layers that come and go, but from freed tensors and beside old files where groups
    wait on a disk.
    """
    registries = [
        vars(module)["_diffusers_hook"] for module in component.modules() if "_diffusers_hook" in vars(module)
    ]
    hooks = [hook for registry in registries if (hook := registry.get_hook(OFFLOADING)) is not None]
    if not hooks:
        yield
        return
    groups = {id(hook.group): hook.group for hook in hooks}.values()
    for group in groups:
        _bring_back(group)
    for registry in registries:
        for name in (OFFLOADING, *TRACKERS):
            registry.remove_hook(name, recurse=False)
    try:
        yield
    finally:
        from diffusers.hooks.group_offloading import _apply_group_offloading

        for group in groups:
            if group.offload_to_disk_path is not None:  # diffusers would take an old file for that of the new group
                Path(group.safetensors_file_path).unlink(missing_ok=True)
        _apply_group_offloading(component, replace(hooks[0].config, module_prefix=""))


def _bring_back(group: Any) -> None:
    """Bring a group's tensors to its offload device, wherever they are."""
    if group.offload_to_disk_path is None:
        group.offload_()
    elif group._is_offloaded_to_disk:
        weights = load_file(group.safetensors_file_path)
        for key, tensor in group.key_to_tensor.items():
            tensor.data = weights[key].to(group.offload_device)
