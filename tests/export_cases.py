"""What the tests of exporting and merging share."""

import csv

import torch
from adapter_cases import TARGETS, add_adapter, denoiser_of, make_pipeline
from torch import Tensor

import fera
from fera.export.pair import Pair
from fera.export.static import StaticLora
from fera.traces.gates import GateTrace

GATE = [0.2, 0.3, 0.5]
CONVOLUTIONS = ["conv1", "conv_shortcut", "proj_in", "conv_in", "conv_out", "time_emb_proj", "ff.net.0.proj"]


def save(pipe, folder):
    """The adapter of a pipeline as a folder."""
    fera.save_adapter(pipe, folder)
    return folder


def routed(kind, folder, **settings):
    """A pipeline with a routed adapter, and the adapter's folder."""
    pipe = add_adapter(make_pipeline(kind), **settings)
    return pipe, save(pipe, folder)


def layers_of(kind, **settings):
    """The LoRA layers of an adapter by path: (A, B, scale) of each."""
    pipe = add_adapter(make_pipeline(kind), **settings)
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"])
        for name, module in denoiser_of(pipe).named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


def make_lora(denoiser: str, layers: dict[str, tuple[int, int]], rank: int = 3, **config) -> StaticLora:
    """A random LoRA for layers with (in, out) features."""
    generator = torch.Generator().manual_seed(0)
    pairs = {
        name: Pair(torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator))
        for name, (width, out) in layers.items()
    }
    settings = fera.FeraConfig(target_modules=TARGETS, base_fingerprint={"class": denoiser, "sample": {}}, **config)
    return StaticLora(pairs, torch.tensor(GATE), settings)


def deltas(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight changes of a PEFT state dict by layer."""
    return {
        key.removesuffix(".lora_A.weight"): state[key.replace("lora_A", "lora_B")].flatten(1).double()
        @ tensor.flatten(1).double()
        for key, tensor in state.items()
        if key.endswith("lora_A.weight")
    }


def responses(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the weight changes of a PEFT state dict make of a few random inputs, by layer: `deltas` of wide layers."""
    found = {}
    for key, tensor in state.items():
        if key.endswith("lora_A.weight"):
            generator = torch.Generator().manual_seed(0)
            inputs = torch.randn(tensor.shape[1], 4, generator=generator, dtype=torch.float64)
            second = state[key.replace("lora_A", "lora_B")].double()
            found[key.removesuffix(".lora_A.weight")] = second @ (tensor.double() @ inputs)
    return found


def write_trace(path, gates, name="ink"):
    """A gates.csv as `fera generate --trace` writes it, for gates of S steps."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("adapter", "step", "timestep", "quantity", "index", "mean", "std"))
        for step, gate in enumerate(gates, 1):
            for index, weight in enumerate(gate, 1):
                table.writerow((name, step, 1000 - 100 * step, "gate", index, weight, 0))
            table.writerow((name, step, 1000 - 100 * step, "band", 1, 1.0, 0))
    return path


TRACE = GateTrace([900.0, 600.0, 300.0, 100.0], torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]))
