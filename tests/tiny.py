"""Tiny real diffusers models, made on the fly: nothing is downloaded and a forward takes milliseconds."""

import copy
from functools import cache

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ["a red rocket", "a green tree", "a blue house", "a yellow cat", "the sun and moon"]
COLORS = {"a red rocket": "red", "a green tree": "green", "a blue house": "blue", "a yellow cat": "yellow"}


def make_unet(**overrides: object) -> UNet2DConditionModel:
    """A UNet for 4-channel latents of 8x8 (any even size works), text width 32."""
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**settings | overrides).eval()


def make_sd3_transformer(**overrides: object) -> SD3Transformer2DModel:
    """An SD3 transformer for 4-channel latents of 8x8, text width 32, pooled width 64."""
    settings = {
        "sample_size": 8,
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "out_channels": 4,
        "pos_embed_max_size": 16,
    }
    torch.manual_seed(0)
    model = SD3Transformer2DModel(**settings | overrides).eval()
    # diffusers starts the last layer at zero; a model that predicts zeros hides mistakes.
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


@cache
def _trained_tokenizer() -> CLIPTokenizer:
    # Once: training breaks ties at random, and pipelines made alike should be alike.
    tokenizer = CLIPTokenizer(model_max_length=16)
    trained = tokenizer.train_new_from_iterator(WORDS, 600, show_progress=False)
    trained.model_max_length = 16
    return trained


def _tokenizer() -> CLIPTokenizer:
    return copy.deepcopy(_trained_tokenizer())  # threads must not share one


@cache
def _trained_tokenizer_t5() -> T5Tokenizer:
    return T5Tokenizer().train_new_from_iterator(WORDS, 200, show_progress=False)


def _text_config(tokenizer: CLIPTokenizer, max_position_embeddings: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=max_position_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_clip(max_position_embeddings: int = 16) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A CLIP text encoder, 32 wide, and its tokenizer."""
    tokenizer = _tokenizer()
    torch.manual_seed(2)
    return CLIPTextModel(_text_config(tokenizer, max_position_embeddings)).eval(), tokenizer


def make_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 text encoder, 64 wide, and its tokenizer."""
    tokenizer = copy.deepcopy(_trained_tokenizer_t5())
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval(), tokenizer


def make_vae(**overrides: object) -> AutoencoderKL:
    """An autoencoder with 4-channel latents at half the pictures' size."""
    settings = {
        "block_out_channels": (8, 16),
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
        "scaling_factor": 0.8,
    }
    torch.manual_seed(1)
    return AutoencoderKL(**settings | overrides).eval()


def make_sd_pipeline() -> StableDiffusionPipeline:
    """A StableDiffusionPipeline for 16x16 images (8x8 latents), flow matching like the emoji base."""
    text_encoder, tokenizer = make_clip()
    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=make_unet(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sd3_pipeline() -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline for 16x16 images (8x8 latents) with its three text encoders."""
    tokenizer = _tokenizer()
    text_encoder_3, tokenizer_3 = make_t5()
    encoders = [CLIPTextModelWithProjection(_text_config(tokenizer)).eval() for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=make_sd3_transformer(joint_attention_dim=64),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )
