"""The gate of each row of a layer's input: never another sample's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.tuner.gate import FrequencyGate


def gate_of_rows(
    gate: FrequencyGate, layer: nn.Module, adapter: str, shape: Sequence[int], part: str | None = None
) -> Tensor:
    """The current gate of an adapter for each row of a layer's input.

    Most layers see (batch, ...). Frames and other axes that are folded into the batch follow their sample. Where
    guidance splits the batch inside of the denoiser (PAG, FasterCache), a layer sees some of its samples: they repeat,
    so it does not matter which. Where all samples have one gate, rows are not asked for.

    Args:
        gate: the denoiser's gate.
        layer: the base layer that asks, for the error.
        adapter: the adapter.
        shape: the shape of the layer's input, (N, ...).
        part: what the denoiser's class knows the layer's rows by: `CallReader.part_of`.

    Returns:
        Shape (N, E), float32.

    Raises:
        FeraError: the layer is called outside its denoiser's forward, or samples differ in their gates and rows cannot
            be told.
    """
    gates = gate.gates
    if gates is None or adapter not in gates:
        raise FeraError(
            f"a layer of adapter {adapter!r} was called outside its denoiser's forward, so there is no latent to "
            "route it; call the denoiser, or disable the adapter"
        )
    weights = gates[adapter]
    samples, count = len(weights), shape[0]
    if part is None and count == samples and len(shape) > 1:
        return weights
    if len(shape) > 1 and gate.repeats(adapter, 1):
        return weights[:1].expand(count, -1)
    found = None if len(shape) == 1 else _gate_of_rows(gate, adapter, weights, shape, part)
    if found is None:
        raise FeraError(
            f"a {type(layer).__name__} sees {count} rows, and the call has {samples} latents whose gates differ: it "
            "cannot be told which row belongs to which. Draw from one latent a call (a single prompt and "
            "num_images_per_prompt=1; in training, a batch of 1), or leave this layer out of target_modules"
        )
    return found


def _gate_of_rows(
    gate: FrequencyGate, adapter: str, weights: Tensor, shape: Sequence[int], part: str | None
) -> Tensor | None:
    samples, count = len(weights), shape[0]
    if part is None:
        is_folded = count % samples == 0 and (len(shape) > 2 or gate.knows_rows)
        each = count // samples if is_folded else 1
    else:
        known = gate.rows.get(part)
        if not isinstance(known, int):
            if known is None or len(known) != samples or sum(known) != count:
                return None
            return weights.repeat_interleave(torch.tensor(known, device=weights.device), dim=0, output_size=count)
        each = known
    if not each or count % each:
        return None
    batch = count // each
    if batch != samples:
        is_split = batch < samples and gate.knows_rows and gate.repeats(adapter, math.gcd(batch, samples))
        if not is_split:
            return None
        weights = weights[:batch]
    return weights.repeat_interleave(each, dim=0)
