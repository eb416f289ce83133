"""Sound of one dimension: Stable Audio 3 has it behind the channels, ACE-Step and LongCat-AudioDiT before them."""

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    MiniMaxMusic3ConditionEncoder,
    MiniMaxMusic3Transformer1DModel,
    StableAudio3DiTModel,
    StableAudio3Pipeline,
)
from diffusers.modular_pipelines.minimax_music3.modular_blocks_minimax_music3 import MiniMaxMusic3CoreDenoiseStep
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from tiny import make_t5
from tiny_texts import make_qwen3, make_tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from models.case import Case
from models.inputs import awake, embeddings, mask
from models.modular import Modular

STABLE_AUDIO = {
    "prompt_embeds": embeddings(0, 1, 6, 16),
    "encoder_attention_mask": mask(1, 6).long(),
    "negative_prompt_embeds": embeddings(1, 1, 6, 16),
    "negative_encoder_attention_mask": mask(1, 6).long(),
    "duration": 8.0,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "output_type": "latent",
}
ACE_STEP = {
    "prompt": "a red rocket",
    "lyrics": "the sun and moon",
    "audio_duration": 16.0,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "shift": 1.0,
    "output_type": "latent",
}
LONGCAT = {
    "prompt": "a red rocket",
    "audio_duration_s": 0.004,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "output_type": "latent",
}
# What its language model said of each frame, a state a layer.
MUSIC = {"frame_hiddens": embeddings(0, 1, 12, 16), "num_inference_steps": 3}


def make_stable_audio3_transformer(**overrides: object) -> StableAudio3DiTModel:
    """Latents of 8 channels, texts 16 wide."""
    settings = {
        "io_channels": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "cond_token_dim": 16,
        "global_cond_dim": 16,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2,
        "num_memory_tokens": 3,
        "use_differential_attention": False,
    }
    torch.manual_seed(0)
    return awake(StableAudio3DiTModel(**settings | overrides))


def make_stable_audio3() -> StableAudio3Pipeline:
    """From embeddings in place of words."""
    transformer = make_stable_audio3_transformer()
    vae = AutoencoderSAME(
        audio_channels=2,
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        use_differential_attention=False,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    return StableAudio3Pipeline(
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16).eval(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def make_ace_step() -> AceStepPipeline:
    """Words and lyrics, with the encoder that reads both."""
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    torch.manual_seed(0)
    transformer = AceStepTransformer1DModel(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        in_channels=24,
        audio_acoustic_hidden_dim=8,
        **attention,
    )
    encoder = AceStepConditionEncoder(
        hidden_size=32,
        intermediate_size=64,
        text_hidden_dim=32,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **attention,
    )
    nn.init.normal_(encoder.null_condition_emb)
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=8,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    return AceStepPipeline(
        vae=vae.eval(),
        text_encoder=make_qwen3(2, width=32).model,
        tokenizer=make_tokenizer(),
        transformer=awake(transformer),
        condition_encoder=encoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def make_longcat() -> LongCatAudioDiTPipeline:
    """One channel of sound."""
    tokenizer = make_t5()[1]
    torch.manual_seed(3)
    text = UMT5Config(d_model=32, num_layers=1, num_heads=4, d_kv=8, d_ff=64, vocab_size=len(tokenizer))
    text_encoder = UMT5EncoderModel(text).eval()
    transformer = LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=32, latent_dim=8, text_conv=False
    )
    vae = LongCatAudioDiTVae(
        in_channels=1,
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=24000,
    )
    return LongCatAudioDiTPipeline(
        vae=vae.eval(), text_encoder=text_encoder, tokenizer=tokenizer, transformer=awake(transformer)
    )


def make_music3() -> Modular:
    """The steps that denoise, from the states of its language model."""
    torch.manual_seed(0)
    transformer = MiniMaxMusic3Transformer1DModel(
        in_channels=8,
        condition_dim=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=32,
        rotary_dim=8,
        fourier_embedding_dim=16,
    )
    encoder = MiniMaxMusic3ConditionEncoder(condition_hidden_dim=8, num_condition_layers=2, out_dim=16)
    return Modular(
        MiniMaxMusic3CoreDenoiseStep(),
        "latent_chunks",
        transformer=awake(transformer),
        condition_encoder=encoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, invert_sigmas=True),
        guider=ClassifierFreeGuidance(guidance_scale=1.7),
    )


def transpose(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """(B, L, C) to (B, C, L)."""
    return latents.transpose(1, 2)


CASES = [
    Case("stable-audio-3", make_stable_audio3, STABLE_AUDIO, {"prompt_embeds": embeddings(2, 1, 6, 16)}, copies=2),
    Case("ace-step", make_ace_step, ACE_STEP, {"prompt": "a green tree"}, transpose, copies=2),
    Case("longcat-audio", make_longcat, LONGCAT, {"prompt": "a green tree"}, transpose, calls_per_step=2),
    Case("minimax-music3", make_music3, MUSIC, {"frame_hiddens": embeddings(1, 1, 12, 16)}, calls_per_step=2),
]
