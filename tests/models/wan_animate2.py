"""Wan-Animate 2, a modular pipeline: the driving video is seen in a call of its own, before the first step."""

import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, WanAnimate2Transformer3DModel
from diffusers.modular_pipelines.wan_animate_2.modular_blocks_wan_animate_2 import WanAnimate2CoreDenoiseStep

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import awake, embeddings
from models.modular import Modular

CALL = {
    "reference_image_latents": embeddings(0, 20, 1, 4, 4),
    "driving_video_pixels": embeddings(1, 1, 3, 5, 32, 32),
    "num_segments": 1,
    "effective_segment": 4,
    "segment_frame_length": 5,
    "condition_clip_context": embeddings(2, 1, 4, 1280),
    "denoiser_input_fields": {"encoder_hidden_states_image": embeddings(3, 1, 4, 1280)},
    "prompt_embeds": embeddings(4, 1, 8, 32),
    "negative_prompt_embeds": embeddings(5, 1, 8, 32),
    "prompt_ref_embeds": embeddings(6, 1, 8, 32),
    "height": 32,
    "width": 32,
    "num_inference_steps": 3,
}


def make_pipeline() -> Modular:
    """The steps that denoise one segment, from embeddings in place of words and of pictures."""
    torch.manual_seed(0)
    transformer = WanAnimate2Transformer3DModel(
        text_len=16, dim=48, ffn_dim=64, freq_dim=32, text_dim=32, num_heads=4, num_layers=1
    )
    return Modular(
        WanAnimate2CoreDenoiseStep(),
        "segment_frames",
        vae=wan.components()["vae"],
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )


CASES = [
    Case(
        "wan-animate-2",
        make_pipeline,
        CALL,
        {"driving_video_pixels": embeddings(7, 1, 3, 5, 32, 32), "prompt_embeds": embeddings(8, 1, 8, 32)},
        frames_as_channels,
        calls_per_step=2,
        calls_before=1,
    )
]
