"""FIBO 2: guidance in two calls."""

import torch
from diffusers import BriaFibo2Pipeline, BriaFibo2Transformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny_texts import make_processor, make_qwen3_vl_lm

from models.case import Case
from models.ernie_image import make_vae
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_pipeline() -> BriaFibo2Pipeline:
    """For 4-channel latents, bundles of three layers of text 8 wide; few words are told as 4 tokens, more as 8."""
    torch.manual_seed(0)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=3 * 8,
        injection_layer_ids=(1, 2, 3, 4, 5),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=16,
        gist_max_text_len=64,
        axes_dims=(4, 4, 8),
        axes_lens=(512, 64, 64),
    )
    return BriaFibo2Pipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(),
        text_encoder=make_qwen3_vl_lm(36, width=8),
        processor=make_processor(),
    )


CASES = [Case("bria-fibo-2", make_pipeline, CALL, OTHER_PROMPT, calls_per_step=2)]
