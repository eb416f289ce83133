"""A base with the proportions of SD 1.5: what encoding costs beside the UNet is what it is there.

UNet, autoencoder and text encoder are SD 1.5's, an eighth as wide, for pictures of half the side (256 pixels) and
captions of 16 tokens. Weights are random. `python -m benchmarks.small_sd15` counts the operations of both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from benchmarks.full_models import SD15
from fera.demo import base_path


@dataclass(frozen=True)
class Sizes:
    """What the three parts are scaled by.

    Args:
        width: an eighth of a part's widths is 1.
        side: of a latent.
        tokens: of a caption.
        vocabulary: words of the text encoder.
    """

    width: int
    side: int
    tokens: int
    vocabulary: int


FULL = Sizes(width=8, side=64, tokens=77, vocabulary=49408)
EIGHTH = Sizes(width=1, side=32, tokens=16, vocabulary=1934)  # of the emoji base's tokenizer
TINY = Sizes(width=1, side=8, tokens=16, vocabulary=1934)


def unet_of(sizes: Sizes) -> nn.Module:
    """The UNet: blocks, layers and heads of SD 1.5."""
    widths = {
        "block_out_channels": tuple(40 * sizes.width * factor for factor in (1, 2, 4, 4)),
        "cross_attention_dim": 96 * sizes.width,
        "norm_num_groups": 4 * sizes.width,
    }
    return UNet2DConditionModel.from_config(SD15 | widths | {"sample_size": sizes.side})


def autoencoder_of(sizes: Sizes) -> nn.Module:
    """The autoencoder: blocks and layers of SD 1.5."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(16 * sizes.width * factor for factor in (1, 2, 4, 4)),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4 * sizes.width,
        sample_size=8 * sizes.side,
    )


def text_encoder_of(sizes: Sizes) -> nn.Module:
    """The text encoder: layers and heads of CLIP ViT-L/14."""
    settings: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=96 * sizes.width,
            intermediate_size=384 * sizes.width,
            num_hidden_layers=12,
            num_attention_heads=12,
            vocab_size=sizes.vocabulary,
            max_position_embeddings=sizes.tokens,
            **settings,
        )
    )


def save_base(folder: Path, sizes: Sizes = EIGHTH) -> Path:
    """Write such a base with the emoji base's tokenizer and schedule.

    Args:
        folder: where to; made.
        sizes: how large.

    Returns:
        The folder.
    """
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=autoencoder_of(sizes),
        text_encoder=text_encoder_of(sizes),
        tokenizer=AutoTokenizer.from_pretrained(base_path() / "tokenizer"),
        unet=unet_of(sizes),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(base_path(), subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def operations(sizes: Sizes) -> dict[str, int]:
    """Floating point operations of one sample: a forward of the UNet, encoding a picture, encoding a caption."""
    pixels, words, width = 8 * sizes.side, sizes.tokens, 96 * sizes.width
    with torch.device("meta"):
        unet, autoencoder, text_encoder = unet_of(sizes), autoencoder_of(sizes), text_encoder_of(sizes)
        latent, step, text = torch.empty(1, 4, sizes.side, sizes.side), torch.empty(1), torch.empty(1, words, width)
        picture, tokens = torch.empty(1, 3, pixels, pixels), torch.zeros(1, words, dtype=torch.long)
    return {
        "UNet": _count(unet, latent, step, text),
        "picture": _count(autoencoder.encode, picture),
        "caption": _count(text_encoder, tokens),
    }


@torch.no_grad()
def _count(work: Callable[..., Any], *arguments: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        work(*arguments)
    return counter.get_total_flops()


if __name__ == "__main__":
    for name, sizes in (("SD 1.5", FULL), ("an eighth as wide", EIGHTH)):
        counts = operations(sizes)
        shares = ", ".join(f"{part} {count / counts['UNet']:.4f}" for part, count in counts.items() if part != "UNet")
        print(f"{name}: a forward of the UNet {counts['UNet'] / 1e9:.2f} GFLOP; beside it {shares}")
