"""OmniGen: timesteps count how clean a latent is; captions and references are tokens beside the latent."""

import torch
import torchvision_parts
from diffusers import FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from tiny import make_vae
from tiny_texts import make_tokenizer

from models.case import Case
from models.inputs import awake, picture

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 64,
    "output_type": "latent",
}


def make_pipeline() -> OmniGenPipeline:
    """Its autoencoder makes a pixel of 8 x 8: the pipeline counts on it."""
    if not hasattr(processor_omnigen, "transforms"):
        processor_omnigen.transforms = torchvision_parts
        pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        time_step_dim=4,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        pos_embed_max_size=16,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    return OmniGenPipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=make_vae(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        tokenizer=tokenizer,
    )


CASES = [
    Case("omnigen", make_pipeline, CALL, {"prompt": "a green tree"}, copies=2),
    Case(
        "omnigen-references",
        make_pipeline,
        CALL | {"prompt": "<img><|image_1|></img> red", "input_images": [picture(0, 32, 32)]},
        {"input_images": [picture(1, 32, 32)]},
        copies=3,
    ),
]
