"""One adapted linear layer, forward and backward."""

from collections.abc import Callable, Iterator

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.contestants import EXPERTS, LORA, RANK
from benchmarks.race import Comparison, Race
from benchmarks.released import StackedExperts
from benchmarks.setting import Setting, autocast_of
from fera import FeraConfig, register_denoiser


class LinearLayers(nn.Module):
    """The simplest denoiser: linear layers in a row.

    Args:
        width: features in and out.
        count: how many layers.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))

    def forward(self, sample: Tensor) -> Tensor:
        """Not called: the layers are timed by themselves."""
        raise NotImplementedError


def linear_contestants(
    setting: Setting, shape: tuple[int, int, int], experts: int, rank: int, layers: int = 1
) -> dict[str, Callable[[], None]]:
    """Linear layers with PEFT's LoRA, with routed experts and in the released form, forward and backward.

    Args:
        setting: device and precision.
        shape: of the input: samples, tokens, features.
        experts: E.
        rank: r of one expert.
        layers: in a row, under one gate, as those of a denoiser are.

    Returns:
        Name to what runs it.
    """
    register_denoiser(LinearLayers, latent="sample")
    batch, _, width = shape
    wide, targets = experts * rank, [str(i) for i in range(layers)]
    place, device = setting.place, setting.device
    lora, fera, released = (place(LinearLayers(width, layers).requires_grad_(False)) for _ in range(3))
    inject_adapter_in_model(LoraConfig(r=wide, lora_alpha=wide, target_modules=targets), lora)
    inject_adapter_in_model(FeraConfig(r=rank, num_experts=experts, target_modules=targets), fera)
    for model in (lora, fera):
        cast_training_params(model, torch.float32)
    stacked = [StackedExperts(layer, experts, rank, alpha=wide).to(device) for layer in released.layers]
    x, slope = (torch.randn(shape, device=device, dtype=setting.dtype) for _ in range(2))
    x.requires_grad_()
    gate = torch.rand(batch, experts, device=device).softmax(dim=1).requires_grad_()
    for layer in stacked:
        layer.gate = gate

    def run(chain: nn.Module) -> None:
        for leaf in (x, gate, *chain.parameters()):
            leaf.grad = None
        with autocast_of(lora):
            output = chain(x)
        output.backward(slope.to(output.dtype))

    def run_fera() -> None:
        with fera.fera.using({"default": gate}):
            run(fera.layers)

    return {
        "fera": run_fera,
        "PEFT LoRA": lambda: run(lora.layers),
        "released form": lambda: run(nn.Sequential(*stacked)),
    }


def races(setting: Setting) -> Iterator[Race]:
    """The layer of SD 1.5 at 32 x 32 latents."""
    shape = (2, 8, 16) if setting.small else (4, 1024, 640)
    contestants = linear_contestants(setting, shape, EXPERTS, RANK)
    contestants[LORA] = contestants.pop("PEFT LoRA")
    yield Race(
        f"one linear layer, input {shape}, r={RANK}, E={EXPERTS}, forward and backward",
        contestants,
        [Comparison("fera", LORA, 1.05), Comparison("fera", "released form", 0.75)],
        rounds=30,
    )
