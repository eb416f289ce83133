"""HunyuanVideo 1.5: frames behind the channels, and channels of a given frame and of a mask behind those."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from models.case import Case, frames_as_channels
from models.inputs import embeddings, mask, picture

TEXT = {
    "prompt_embeds": embeddings(0, 1, 8, 16),
    "prompt_embeds_mask": mask(1, 8),
    "prompt_embeds_2": embeddings(1, 1, 6, 32),
    "prompt_embeds_mask_2": mask(1, 6),
    "negative_prompt_embeds": embeddings(2, 1, 8, 16),
    "negative_prompt_embeds_mask": mask(1, 8),
    "negative_prompt_embeds_2": embeddings(3, 1, 6, 32),
    "negative_prompt_embeds_mask_2": mask(1, 6),
}
CALL = {**TEXT, "num_inference_steps": 3, "height": 32, "width": 48, "num_frames": 5, "output_type": "latent"}


def make_transformer(seed: int = 0, **overrides: object) -> HunyuanVideo15Transformer3DModel:
    """For 4-channel latents, text widths 16 and 32."""
    settings = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "text_embed_2_dim": 32,
        "image_embed_dim": 12,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 32,
        "task_type": "t2v",
    }
    torch.manual_seed(seed)
    return HunyuanVideo15Transformer3DModel(**settings | overrides).eval()


def make_vae() -> AutoencoderKLHunyuanVideo15:
    """4-channel latents at a quarter of the pictures' size and half of their frames."""
    torch.manual_seed(1)
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    ).eval()


def components(**transformer: object) -> dict[str, object]:
    """What both pipelines share: embeddings take the place of words."""
    return {
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "transformer": make_transformer(**transformer),
        "vae": make_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
    }


def make_pipeline() -> HunyuanVideo15Pipeline:
    """Text to video; the channels of a given frame are zeros."""
    return HunyuanVideo15Pipeline(**components())


def make_image_to_video() -> HunyuanVideo15ImageToVideoPipeline:
    """A picture, which its transformer sees as a latent and as SigLIP does, to video."""
    torch.manual_seed(2)
    vision = SiglipVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    return HunyuanVideo15ImageToVideoPipeline(
        **components(task_type="i2v"),
        image_encoder=SiglipVisionModel(vision).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )


CASES = [
    Case(
        "hunyuan-video-1.5",
        make_pipeline,
        CALL,
        {"prompt_embeds": embeddings(4, 1, 8, 16)},
        frames_as_channels,
        calls_per_step=2,
    ),
    Case(
        "hunyuan-video-1.5-i2v",
        make_image_to_video,
        {name: value for name, value in CALL.items() if name not in ("height", "width")}
        | {"image": picture(0, 32, 32), "prompt": None},
        {"image": picture(1, 32, 32)},
        frames_as_channels,
        calls_per_step=2,
    ),
]
