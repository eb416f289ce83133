"""DiT: pictures of a class."""

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from tiny import make_vae

from models.case import Case

CALL = {"class_labels": [1], "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}


def make_pipeline() -> DiTPipeline:
    """The transformer's output holds a variance too."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(transformer=transformer.eval(), vae=make_vae(), scheduler=DDIMScheduler())


def once(pipe: DiTPipeline, latents: torch.Tensor) -> torch.Tensor:
    """The pipeline steps its latent twice, for the sake of guidance."""
    return latents[:1]


CASES = [Case("dit", make_pipeline, CALL, {"class_labels": [2]}, once, copies=2)]
