"""Sizes of the models that people fine-tune, and random weights for them that fit into memory.

Weights are windows of one buffer of 0.5 or 1 GB: larger than any cache, so that a layer's weights come from memory as
those of a model of 10 GB do.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.contestants import Batch
from benchmarks.setting import Setting
from fera.pipelines.base import lay_out

# As published with the models.
SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX = {"dim": 3072, "num_attention_heads": 24, "attention_head_dim": 128}
FLUX_DOUBLE, FLUX_SINGLE, FLUX_AXES = 19, 38, (16, 56, 56)
FLUX_LATENT = (1, 16, 128, 128)  # 64 x 64 tokens of 2 x 2


def sdxl_of(small: bool) -> nn.Module:
    """SDXL's UNet, or one a tenth as wide."""
    tenth = {"block_out_channels": (32, 64, 128), "sample_size": 16, "attention_head_dim": 4}
    return UNet2DConditionModel.from_config(SDXL | tenth if small else SDXL)


def shallow_sdxl(setting: Setting) -> Any:
    """SDXL's UNet at its full width with a quarter of its layers, for pictures of 512 pixels, frozen."""
    shallow = SDXL | {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2), "sample_size": 64}
    tiny = {"block_out_channels": (32, 64, 128), "sample_size": 16, "attention_head_dim": 4}
    buffer = random_buffer(setting)
    return lay_out(made(lambda: UNet2DConditionModel.from_config(shallow | (tiny if setting.small else {})), buffer))


def flux_of(small: bool) -> nn.Module:
    """FLUX.1 [dev]'s transformer, 12 billion parameters, or one of two blocks."""
    few = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1}
    return FluxTransformer2DModel(guidance_embeds=True, **(few if small else {}))


def flux_batch(transformer: Any, small: bool) -> Batch:
    """A picture of 1024 x 1024 pixels and 512 tokens of text, as FLUX's pipeline passes them; a tile of it if small."""
    side, text_length = (4, 8) if small else (64, 512)
    place: dict[str, Any] = {"device": transformer.device, "dtype": transformer.dtype}
    config = transformer.config
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(side).float(), torch.arange(side).float())
    shape = (1, side * side, config.in_channels)
    inputs = {
        "hidden_states": torch.randn(shape, **place),
        "encoder_hidden_states": torch.randn(1, text_length, config.joint_attention_dim, **place),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim, **place),
        "timestep": torch.full((1,), 0.5, **place),
        "guidance": torch.full((1,), 3.5, device=transformer.device),
        "img_ids": places.to(**place),
        "txt_ids": torch.zeros(text_length, 3, **place),
    }
    return Batch(inputs, torch.randn(shape, device=transformer.device))


def random_buffer(setting: Setting) -> Tensor:
    """Numbers to cut weights from, 2^28 of them, 1 GB in single precision; 2^20 for small models."""
    count = 2**20 if setting.small else 2**28
    return torch.randn(count, device=setting.device, dtype=setting.dtype).mul_(0.02)


def made(build: Callable[[], nn.Module], buffer: Tensor) -> Any:
    """A model, frozen, with random weights: windows of a buffer, one behind the other, over and over.

    Args:
        build: makes it; called where tensors have no data.
        buffer: shape (N,), longer than any of its parameters.
    """
    with torch.device("meta"):
        model = build().eval()
    place = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if place + parameter.numel() > len(buffer):
                place = 0
            window = buffer[place : place + parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(window, requires_grad=False))
            place += parameter.numel()
    return model
