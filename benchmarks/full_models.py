"""Sizes of the models that people fine-tune, and random weights for them that fit into memory.

Weights are windows of one buffer of 1 GB: larger than any cache, so that a layer's weights come from memory as those of
a model of 10 GB do.
"""

import torch
from torch import Tensor, nn

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


def random_buffer(small: bool) -> Tensor:
    """Numbers to cut weights from: 1 GB of them, or 4 MB for small models."""
    return torch.randn(2**20 if small else 2**28).mul_(0.02)


def with_weights(model: nn.Module, buffer: Tensor) -> nn.Module:
    """Give a model on the meta device weights: windows of a buffer, one behind the other, over and over.

    Args:
        model: on the meta device; changed in place.
        buffer: shape (N,), longer than any of its parameters.

    Returns:
        The model, frozen.
    """
    place = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if place + parameter.numel() > len(buffer):
                place = 0
            window = buffer[place : place + parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(window, requires_grad=False))
            place += parameter.numel()
    return model
