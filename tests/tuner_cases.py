"""What the tests of the tuner share: denoisers with their inputs, and adapters whose every weight counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from peft import get_peft_model, inject_adapter_in_model
from tiny import make_sd3_transformer, make_unet
from torch import Tensor, nn

from fera import FeraConfig
from fera.tuner import FrequencyGate

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class Case:
    """One class of denoisers: how to make one and how to call it."""

    name: str
    model: Callable[..., nn.Module]
    inputs: Callable[..., dict[str, Any]]

    def __repr__(self) -> str:
        return self.name


def latents(batch: int, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Latents from smooth to noisy, so that their indicators and gates differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 4, size, size, generator=generator)
    smooth = torch.randn(batch, 4, 1, 1, generator=generator).expand_as(noise)
    share = torch.linspace(0.05, 0.95, batch).view(-1, 1, 1, 1)
    return (share * noise + (1 - share) * 2 * smooth).to(dtype)


def unet_inputs(batch: int, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        "sample": latents(batch, size, seed, dtype),
        "timestep": torch.linspace(100, 900, batch),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator).to(dtype),
    }


def sd3_inputs(batch: int, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        "hidden_states": latents(batch, size, seed, dtype),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator).to(dtype),
        "pooled_projections": torch.randn(batch, 64, generator=generator).to(dtype),
        "timestep": torch.linspace(100, 900, batch),
    }


def make_video_unet() -> UNet3DConditionModel:
    """A denoiser whose layers see frames, or places, in the batch; fera is to be told where its latent is."""
    torch.manual_seed(0)
    return UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def video_inputs(batch: int) -> dict[str, Any]:
    """Three frames a sample."""
    inputs = unet_inputs(batch)
    frames = [inputs["sample"], inputs["sample"].flip(2), inputs["sample"].flip(3)]
    return inputs | {"sample": torch.stack(frames, dim=2)}


UNET = Case("unet", make_unet, unet_inputs)
SD3 = Case("sd3", make_sd3_transformer, sd3_inputs)
CASES = [UNET, SD3]


def config(**settings: Any) -> FeraConfig:
    return FeraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ATTENTION} | settings)


def wrap(base: nn.Module) -> nn.Module:
    """An adapter in a PeftModel."""
    return get_peft_model(base, config())


def inject(base: nn.Module) -> nn.Module:
    """An adapter in the denoiser itself."""
    return inject_adapter_in_model(config(), base)


def add(base: nn.Module) -> nn.Module:
    """An adapter through the method that diffusers gives a denoiser."""
    base.add_adapter(config())
    return base


def fill(model: nn.Module, seed: int = 0, adapter: str = "default") -> nn.Module:
    """Give experts and router weights that show: no zeros, and gates that differ between samples."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if f".{adapter}." not in f"{name}.":
                continue
            if ".lora_" in name:
                # PEFT starts A at random from the global generator; here every run has the same.
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            elif "fera.router" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                if "output" in name:
                    parameter.mul_(0.3)
    return model


def find_gate(model: nn.Module) -> FrequencyGate:
    (gate,) = [module for module in model.modules() if isinstance(module, FrequencyGate)]
    return gate


def predict(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs).sample


def adapter_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def step(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """A loss with gradients, after clearing the old ones."""
    model.zero_grad()
    loss = predict(model, inputs).float().square().mean()
    loss.backward()
    return loss.detach()


def sample_of(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: value[index : index + 1] for name, value in inputs.items()}


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    """As classifier-free guidance calls a denoiser: one latent twice, two texts."""
    return {
        name: torch.cat([value, -value if name in ("encoder_hidden_states", "pooled_projections") else value])
        for name, value in inputs.items()
    }


def flux_inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(2.0))
    return {
        "hidden_states": torch.randn(2, 8, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 3, 64, generator=generator),
        "pooled_projections": torch.randn(2, 32, generator=generator),
        "timestep": torch.tensor([0.9 - 0.3 * seed]),
        "img_ids": places,
        "txt_ids": torch.zeros(3, 3),
    }


def anatomy(model):
    """Everything of a model that an adapter could leave a trace in."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": {
            name: (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_hooks_always_called))
            for name, m in model.named_modules()
        },
        "configs": dict(getattr(model, "peft_config", {})),
    }


def same_anatomy(before, after):
    assert before["state"].keys() == after["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    for part in ("modules", "trainable", "hooks", "configs"):
        assert before[part] == after[part], part
