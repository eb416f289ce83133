"""Starting the router of a fresh adapter as a partition of what it will read."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.method.partition import partition
from fera.method.router import SoftFrequencyRouter, gate_entropy
from fera.tuner.model import gate_of

ENTROPY = 0.8


@torch.no_grad()
def start_router(
    model: nn.Module,
    noisy_latents: Tensor | Iterable[Tensor],
    noise_levels: Tensor,
    *,
    adapter_name: str = "default",
    entropy: float = ENTROPY,
) -> Tensor:
    """Start an adapter's router as a soft partition of noisy training latents, a part for each expert.

    A router that reads the timestep, with or without energies, is started as windows of the timestep: those can be told
    apart without error. What the energies add it learns. Any other one is started as clusters of what it reads. In your
    own training loop call it once, before the first step; `fera train` does.

    Args:
        model: the denoiser with the adapter, or a PeftModel of it.
        noisy_latents: shape (N, C, H, W) or (N, C, L), at noise levels as training will draw them; some hundreds. Large
            ones may come in parts, of which one is in memory at a time.
        noise_levels: shape (N,), 0 (clean) to 1 (pure noise).
        adapter_name: the adapter.
        entropy: mean entropy of the gate, as a fraction of the uniform gate's, in (0, 1): how soft the partition is.

    Returns:
        The gates of the latents, shape (N, E), float32.

    Raises:
        FeraError: there is no such adapter, its router is not one that learns, or it cannot be partitioned.
    """
    gate = gate_of(model)
    if gate is None or adapter_name not in gate.inputs:
        raise FeraError(f"the model has no routed adapter {adapter_name!r} whose router could be started")
    router, reader = gate.router[adapter_name], gate.inputs[adapter_name]
    if not isinstance(router, SoftFrequencyRouter):
        raise FeraError(f"the router of adapter {adapter_name!r} is fixed: there is nothing to start")
    parts = [noisy_latents] if isinstance(noisy_latents, Tensor) else noisy_latents
    read, done = [], 0
    for part in parts:
        read.append(reader(part, noise_levels[done : done + len(part)].to(part.device)).cpu())
        done += len(part)
    inputs = torch.cat(read)
    first = inputs.shape[1] - 1 if reader.reads_timestep else 0
    weight, bias = partition(inputs[:, first:], router.output.out_features, entropy)
    padded = torch.zeros(weight.shape[0], inputs.shape[1], dtype=weight.dtype)
    padded[:, first:] = weight
    device = router.output.bias.device
    router.start_from(padded.to(device), bias.to(device))
    return router(inputs.to(device)).cpu()


def describe_start(gates: Tensor) -> str:
    """What a partition came to, in a few words, for gates (N, E)."""
    use = ", ".join(f"{share:.2f}" for share in gates.mean(dim=0).tolist())
    return f"use {use}; entropy {float(gate_entropy(gates).mean()):.2f}"
