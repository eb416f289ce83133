"""Wan: frames behind the channels; image-to-video appends channels (2.1, 2.2) or writes a frame (2.2, 5B)."""

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from tiny import make_t5
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from models.case import Case
from models.inputs import awake, embeddings, picture

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "max_sequence_length": 16,
    "output_type": "latent",
}
# Embeddings in place of words: this pipeline cleans prompts with a library that is optional.
CALL_I2V = {
    **{name: value for name, value in CALL.items() if name not in ("prompt", "negative_prompt")},
    "prompt_embeds": embeddings(0, 1, 16, 64),
    "negative_prompt_embeds": embeddings(1, 1, 16, 64),
    "image": picture(0, 32, 48),
    "height": 32,
    "width": 48,
    "num_frames": 5,
}
CALL_VACE = {name: value for name, value in CALL_I2V.items() if name != "image"} | {
    "video": [picture(number, 32, 48) for number in range(5)],
    "mask": [picture(9, 32, 48, mode="L")] * 5,
    "reference_images": [picture(10, 32, 48)],
}
CALL_ANIMATE = {name: value for name, value in CALL_I2V.items() if name != "num_frames"} | {
    "pose_video": [picture(number, 32, 48) for number in range(5)],
    "face_video": [picture(number, 16, 16) for number in range(5)],
    "segment_frame_length": 5,
}
# Of a transformer for 16-channel latents, text width 64.
SETTINGS = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 64,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def make_transformer(seed: int = 0, **overrides: object) -> WanTransformer3DModel:
    """A Wan transformer for 16-channel latents, text width 64."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(**SETTINGS | overrides).eval()


def components() -> dict[str, object]:
    """What Wan's pipelines share."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def make_pipeline() -> WanPipeline:
    """Text to video with one denoiser."""
    return WanPipeline(**components(), transformer=make_transformer())


def make_two_denoisers() -> WanPipeline:
    """Text to video as in Wan 2.2: one denoiser for the noisy steps, one for the rest."""
    return WanPipeline(
        **components(),
        transformer=make_transformer(),
        transformer_2=make_transformer(seed=7),
        boundary_ratio=0.8,
    )


def make_image_to_video() -> WanImageToVideoPipeline:
    """Image to video: 4 channels of a mask and 16 of the picture beside the latent's 16."""
    return WanImageToVideoPipeline(**components(), transformer=make_transformer(in_channels=36))


def make_first_frame_to_video() -> WanImageToVideoPipeline:
    """Image to video as in Wan 2.2's 5B model: the picture is the latent's first frame."""
    return WanImageToVideoPipeline(**components(), transformer=make_transformer(), expand_timesteps=True)


def make_vace() -> WanVACEPipeline:
    """A video to fill and a reference steer the transformer through layers of their own."""
    torch.manual_seed(0)
    transformer = WanVACETransformer3DModel(**SETTINGS | {"num_layers": 3, "vace_layers": [0, 1, 2]})
    return WanVACEPipeline(**components(), transformer=awake(transformer))


def make_vision() -> dict[str, object]:
    """What sees a given picture, 4 wide, and what brings it there."""
    config = CLIPVisionConfig(
        hidden_size=4,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4,
        intermediate_size=16,
        patch_size=1,
    )
    torch.manual_seed(2)
    return {
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "image_processor": CLIPImageProcessor(crop_size=4, size=4),
    }


def make_animate() -> WanAnimatePipeline:
    """A character, poses and faces to video: channels behind the latent's, and layers of their own."""
    torch.manual_seed(0)
    transformer = WanAnimateTransformer3DModel(
        **SETTINGS | {"in_channels": 36, "num_layers": 2},
        image_dim=4,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return WanAnimatePipeline(**components(), **make_vision(), transformer=awake(transformer))


def fold(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Frames as channels."""
    return latents.flatten(1, 2)


def fold_drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Without the first frame: the pipeline replaces it by the picture before each call."""
    return latents[:, :, 1:].flatten(1, 2)


CASES = [
    Case("wan", make_pipeline, CALL, {"prompt": "a green tree"}, fold, calls_per_step=2),
    Case(
        "wan-i2v",
        make_image_to_video,
        CALL_I2V,
        {"image": picture(1, 32, 48)},
        fold,
        calls_per_step=2,
    ),
    Case(
        "wan-first-frame",
        make_first_frame_to_video,
        CALL_I2V,
        {"image": picture(1, 32, 48)},
        fold_drawn,
        calls_per_step=2,
    ),
    Case(
        "wan-vace",
        make_vace,
        CALL_VACE,
        {"video": [picture(20, 32, 48)] * 5, "reference_images": [picture(21, 32, 48)]},
        fold,
        calls_per_step=2,
    ),
    Case(
        "wan-animate",
        make_animate,
        CALL_ANIMATE,
        {"image": picture(1, 32, 48), "pose_video": [picture(20, 32, 48)] * 5},
        fold,
        calls_per_step=2,
    ),
]
