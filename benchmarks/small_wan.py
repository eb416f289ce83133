"""A tiny base of the real classes of Wan, for what does not depend on how large a base is."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from fera.demo import base_path


def save_base(folder: Path) -> Path:
    """Write such a base, with the emoji base's tokenizer.

    Args:
        folder: where to; made.

    Returns:
        The folder.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_path() / "tokenizer")
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=64,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)),
        vae=AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
