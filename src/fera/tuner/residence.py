"""Routers stay in place while diffusers offloads the denoiser around them in groups.

The gate is computed before the denoiser's forward, and diffusers brings a group back within it: a router that waits
for its turn would be read as it was left, which is freed memory where groups wait on a disk. It is a few thousand
numbers, so it is taken out of its groups for good and kept where the denoiser computes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

# Diffusers' names of its hooks.
OFFLOADING = "group_offloading"
TRACKERS = ("layer_execution_tracker", "lazy_prefetch_group_offloading")


def has_groups(denoiser: nn.Module, router: nn.Module) -> bool:
    """Whether diffusers has hooks where a group with the router in it could be."""
    if "_diffusers_hook" in vars(denoiser) or "_diffusers_hook" in vars(router):
        return True
    # By hand: it is asked before each forward, and `modules` takes many times as long.
    routers = router.children()
    return any("_diffusers_hook" in vars(part) for one in routers for part in (one, *one.children()))


@torch.compiler.disable(reason="moves weights that diffusers has offloaded")  # type: ignore[untyped-decorator]
def keep_in_place(denoiser: nn.Module, router: nn.Module) -> None:
    """Take routers out of the groups that diffusers offloads, with the weights they had.

    Args:
        denoiser: the model.
        router: all of its routers, a part of it.
    """
    own = [*router.parameters(), *router.buffers()]
    names = {id(part): name for name, part in denoiser.named_modules()}
    for part in (denoiser, *router.modules()):
        registry: Any = vars(part).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook(OFFLOADING)
        if hook is None:
            continue
        _take_out(hook.group, own, router)
        if part is not denoiser:
            for name in (OFFLOADING, *TRACKERS):
                registry.remove_hook(name, recurse=False)
            if hook.group.offload_to_disk_path is not None:  # a later group would take it for its own
                Path(hook.group.safetensors_file_path).unlink(missing_ok=True)
            _expect_no_longer(denoiser, names[id(part)])


def _take_out(group: Any, own: Sequence[Tensor], router: nn.Module) -> None:
    """Bring tensors of a group back, and let the group forget them."""
    held = {id(tensor) for module in group.modules for tensor in (*module.parameters(), *module.buffers())}
    held |= {id(tensor) for tensor in (*group.parameters, *group.buffers)}
    for tensor in own:
        if id(tensor) not in held:
            continue
        if group.offload_to_disk_path is not None:
            key = group.tensor_to_key.pop(tensor, None)
            if key is not None:
                del group.key_to_tensor[key]
                with safe_open(group.safetensors_file_path, framework="pt") as file:
                    tensor.data = file.get_tensor(key).to(group.onload_device)
        else:
            tensor.data = group.cpu_param_dict.pop(tensor, tensor.data).to(group.onload_device)
    parts = {id(part) for part in router.modules()}
    own_ids = {id(tensor) for tensor in own}
    # A group of modules moves all that is in them: what holds the router is replaced by what else it holds.
    group.modules = [kept for module in group.modules for kept in _without(module, parts)]
    group.parameters = [tensor for tensor in group.parameters if id(tensor) not in own_ids]
    group.buffers = [tensor for tensor in group.buffers if id(tensor) not in own_ids]


def _without(module: nn.Module, parts: set[int]) -> list[nn.Module]:
    """A module, or what is in it beside some of its parts."""
    if id(module) in parts:
        return []
    if not any(id(part) in parts for part in module.modules()):
        return [module]
    return [kept for child in module.children() for kept in _without(child, parts)]


def _expect_no_longer(denoiser: nn.Module, name: str) -> None:
    """Where diffusers is about to learn the order of its groups, let it not wait for this one."""
    registry: Any = vars(denoiser).get("_diffusers_hook")
    hook = None if registry is None else registry.get_hook(TRACKERS[1])
    if hook is not None:
        hook._layer_execution_tracker_module_names.discard(name)
