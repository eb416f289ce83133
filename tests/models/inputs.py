"""What the cases share: inputs where no tiny text encoder makes them, pictures, and models without dead layers."""

from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def embeddings(seed: int, *shape: int) -> Tensor:
    """Random ones, as a text encoder might give."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask(*shape: int) -> Tensor:
    """Of embeddings without padding."""
    return torch.ones(shape, dtype=torch.bool)


def picture(seed: int, height: int = 16, width: int = 24, mode: str = "RGB") -> Image.Image:
    """Random pixels; `mode` "L" for a mask."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, len(mode)), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.squeeze(-1).numpy(), mode)


def awake(model: Model, std: float = 0.1) -> Model:
    """The model in evaluation mode, with random weights where it starts with zeros, which would hide its inputs."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def certain(vae: nn.Module) -> None:
    """Let an autoencoder be all but certain of a picture's latent: a draw of it is its mean."""
    layer = getattr(vae, "quant_conv", None) or vae.encoder.conv_out
    layer, own = getattr(layer, "conv", layer), vae.config.latent_channels
    with torch.no_grad():
        layer.weight[own:] = 0
        layer.bias[own:] = -30
