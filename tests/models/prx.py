"""PRX."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel
from tiny import make_t5, make_vae
from transformers import T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "use_resolution_binning": False,
    "output_type": "latent",
}


def make_pipeline() -> PRXPipeline:
    """For 4-channel latents, text width 32."""
    tokenizer = make_t5()[1]
    tokenizer.model_max_length = 32
    torch.manual_seed(3)
    settings = T5GemmaModuleConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        dropout_rate=0.0,
    )
    text_encoder = T5GemmaEncoder(settings).eval()
    torch.manual_seed(0)
    transformer = PRXTransformer2DModel(
        in_channels=4, context_in_dim=32, hidden_size=32, mlp_ratio=1.0, num_heads=2, depth=1, axes_dim=[8, 8]
    )
    return PRXPipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=make_vae(shift_factor=0.1),
        default_sample_size=16,
    )


CASES = [Case("prx", make_pipeline, CALL, OTHER_PROMPT, copies=2)]
