"""Stable Audio: a latent of one dimension."""

import torch
from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from tiny import make_t5

from models.case import Case

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "output_type": "latent",
}


def make_transformer(**overrides: object) -> StableAudioDiTModel:
    """Latents of 8 channels and length 32."""
    settings = {
        "sample_size": 32,
        "in_channels": 8,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 2,
        "out_channels": 8,
        "cross_attention_dim": 64,
        "time_proj_dim": 8,
        "global_states_input_dim": 128,
        "cross_attention_input_dim": 64,
    }
    torch.manual_seed(0)
    return StableAudioDiTModel(**settings | overrides).eval()


def make_pipeline() -> StableAudioPipeline:
    """Text to sound."""
    text_encoder, tokenizer = make_t5()
    tokenizer.model_max_length = 16
    transformer = make_transformer()
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        channel_multiples=[1, 2],
        decoder_channels=3,
        decoder_input_channels=8,
        sampling_rate=16,
    )
    return StableAudioPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder,
        projection_model=StableAudioProjectionModel(64, 64, 0, 32).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=CosineDPMSolverMultistepScheduler(),
    )


CASES = [Case("stable-audio", make_pipeline, CALL, {"prompt": "a green tree"}, copies=2)]
