"""HunyuanVideo: frames behind the channels."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tiny import make_clip, make_t5
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from models.case import Case
from models.inputs import embeddings, mask, picture

CALL = {
    "prompt": "a red rocket",
    "prompt_template": {"template": "{}", "crop_start": 0},
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "max_sequence_length": 16,
    "output_type": "latent",
}
CALL_I2V = {
    "prompt_embeds": embeddings(0, 1, 6, 32),
    "pooled_prompt_embeds": embeddings(1, 1, 32),
    "prompt_attention_mask": mask(1, 6),
    "image": picture(0, 64, 96),
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "output_type": "latent",
}
CALL_FRAMEPACK = {
    "prompt_embeds": embeddings(0, 1, 6, 32),
    "pooled_prompt_embeds": embeddings(1, 1, 32),
    "prompt_attention_mask": mask(1, 6),
    "image": picture(0, 64, 96),
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "latent_window_size": 3,
    "output_type": "latent",
}
# Of the transformers, for 4-channel latents and text widths 32 and 32.
SETTINGS = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 32,
    "pooled_projection_dim": 32,
    "rope_axes_dim": (2, 4, 4),
}


def make_transformer(**overrides: object) -> HunyuanVideoTransformer3DModel:
    """A transformer for 4-channel latents, text widths 32 and 32."""
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(**SETTINGS | overrides).eval()


def make_vae() -> AutoencoderKLHunyuanVideo:
    """4-channel latents at an eighth of the pictures' size and a quarter of their frames."""
    torch.manual_seed(4)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()


def make_pipeline() -> HunyuanVideoPipeline:
    """Text to video. Its Llama reads T5's tokens."""
    _, tokenizer = make_t5()
    clip, tokenizer_2 = make_clip()
    torch.manual_seed(4)
    # The pipeline asks for 77 tokens whatever the tokenizer says.
    text_encoder_2 = CLIPTextModel(CLIPTextConfig(**clip.config.to_dict() | {"max_position_embeddings": 77})).eval()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(config).eval(),
        tokenizer=tokenizer,
        transformer=make_transformer(),
        vae=make_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )


def make_image_to_video() -> HunyuanVideoImageToVideoPipeline:
    """A picture, which is the latent's first frame, to a video, from embeddings in place of words."""
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=make_transformer(guidance_embeds=True, image_condition_type="token_replace"),
        vae=make_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )


def make_framepack() -> HunyuanVideoFramepackPipeline:
    """A picture to a video, from embeddings in place of words."""
    torch.manual_seed(0)
    transformer = HunyuanVideoFramepackTransformer3DModel(
        **SETTINGS, has_image_proj=True, image_proj_dim=12, has_clean_x_embedder=True
    )
    vision = SiglipVisionConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    return HunyuanVideoFramepackPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        vae=make_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=SiglipVisionModel(vision).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )


def fold(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Frames as channels."""
    return latents.flatten(1, 2)


CASES = [
    Case("hunyuan-video", make_pipeline, CALL, {"prompt": "a green tree"}, fold),
    # The picture is in the first noise too, a thousandth of it.
    Case("hunyuan-video-i2v", make_image_to_video, CALL_I2V, {"prompt_embeds": embeddings(2, 1, 6, 32)}, fold),
    Case("hunyuan-video-framepack", make_framepack, CALL_FRAMEPACK, {"image": picture(1, 64, 96)}, fold),
]
