"""Sound: Stable Audio, Stable Audio 3, ACE-Step, LongCat-AudioDiT; autoencoders for 8000 samples a second."""

import torch
from diffusers import (
    AceStepPipeline,
    DiffusionPipeline,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTVae,
    StableAudio3Pipeline,
    StableAudioPipeline,
)
from models import sound, stable_audio
from tiny import make_t5
from transformers import T5GemmaConfig, T5GemmaEncoderModel, T5GemmaModuleConfig

from trained_cases.case import Case


def make_stable_audio3() -> StableAudio3Pipeline:
    """With its text encoder."""
    pipe = sound.make_stable_audio3()
    tokenizer = make_t5()[1]
    tokenizer.model_max_length = 16
    torch.manual_seed(2)
    module = T5GemmaModuleConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
    )
    text_encoder = T5GemmaEncoderModel(T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False)).eval()
    return StableAudio3Pipeline(**at_8000(pipe) | {"text_encoder": text_encoder, "tokenizer": tokenizer})


def make_stable_audio() -> StableAudioPipeline:
    """Latents of 32 frames, of 64 samples, whatever is asked for."""
    return StableAudioPipeline(**at_8000(stable_audio.make_pipeline()))


def make_ace_step() -> AceStepPipeline:
    """Latents of 20 frames a second: half a minute of silence, which it is told of, is then short."""
    return AceStepPipeline(**at_8000(sound.make_ace_step(), downsampling_ratios=[20, 20]))


def make_longcat() -> LongCatAudioDiTPipeline:
    """Its autoencoder takes four samples for a frame, as its configuration says."""
    pipe = sound.make_longcat()
    vae = LongCatAudioDiTVae.from_config({**pipe.vae.config, "strides": [2, 2], "downsampling_ratio": 4})
    return LongCatAudioDiTPipeline(**pipe.components | {"vae": vae.eval()})


def at_8000(pipe: DiffusionPipeline, **settings: object) -> dict[str, object]:
    """Its parts, with an autoencoder whose encoder gives as many channels as its decoder takes."""
    torch.manual_seed(4)
    config = {**pipe.vae.config, "sampling_rate": 8000, **settings}
    if "encoder_hidden_size" in config:
        config["encoder_hidden_size"] = 2 * config["decoder_input_channels"]
    return pipe.components | {"vae": type(pipe.vae).from_config(config).eval()}


CASES = [
    Case("stable-audio", make_stable_audio, seconds=0.006),
    Case("stable-audio-3", make_stable_audio3, seconds=0.015),
    Case("ace-step", make_ace_step, {"shift": 1.0}, seconds=0.8),
    Case("longcat-audio", make_longcat, seconds=0.005),
]
