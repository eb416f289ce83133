"""Layers come and go while a pipeline's weights are offloaded.

What offloads weights has hooks on the layers there were: new layers would be left where they are, and with sequential
offloading they would be put beside weights that are not there at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def weights_in_place(pipe: Any) -> Iterator[None]:
    """Take a pipeline's offloading away inside the block, and put it over all its layers after it.

    Args:
        pipe: a diffusers pipeline; a bare denoiser is left alone.
    """
    if not isinstance(getattr(pipe, "components", None), dict) or not hasattr(pipe, "hf_device_map"):
        yield
        return
    # What diffusers itself does around load_lora_weights.
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
    from diffusers.loaders.lora_base import _func_optionally_disable_offloading

    by_model, sequential, by_group = _func_optionally_disable_offloading(pipe)
    try:
        yield
    finally:
        device = getattr(pipe, "_offload_device", None)
        if by_model:
            pipe.enable_model_cpu_offload(device=device)
        elif sequential:
            pipe.enable_sequential_cpu_offload(device=device)
        elif by_group:
            for component in pipe.components.values():
                if isinstance(component, nn.Module):
                    _maybe_remove_and_reapply_group_offloading(component)
