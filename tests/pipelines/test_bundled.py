"""Checkpoints that open by what comes with fera: no folder is named, and nothing is fetched."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from original_names import stable_diffusion, stable_diffusion_xl, text_encoders_of_3, vae_of
from original_transformers import PREFIX, stable_diffusion_3
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from zero_files import file_of_zeros, no_network

import fera.pipelines
from fera.cli.main import main
from fera.errors import FeraError
from fera.pipelines.base import load_base
from fera.pipelines.clip_words import clip_tokenizer

CONFIGURATIONS = Path(fera.pipelines.__file__).parent / "configurations"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD35 = "stabilityai/stable-diffusion-3.5-large"


def parts_of(model):
    """Of a bundled configuration, without weights."""
    made = {}
    with torch.device("meta"):
        for place in sorted((CONFIGURATIONS / model).glob("*/config.json")):
            config = json.loads(place.read_text())
            if "_class_name" in config:
                classes = (UNet2DConditionModel, AutoencoderKL, SD3Transformer2DModel)
                cls = next(cls for cls in classes if cls.__name__ == config["_class_name"])
                made[place.parent.name] = cls.from_config(config)
            else:
                cls = CLIPTextModel if config["architectures"] == ["CLIPTextModel"] else CLIPTextModelWithProjection
                made[place.parent.name] = cls(CLIPTextConfig(**config))
    return SimpleNamespace(**made)


def test_the_configurations_are_those_of_the_releases():
    """By the number of weights that they are known to have."""
    assert parts_of(SD15).unet.num_parameters() == 859_520_964
    assert parts_of(SDXL).unet.num_parameters() == 2_567_463_684
    for model in (SD15, SDXL):
        parts = parts_of(model)
        assert parts.vae.num_parameters() == 83_653_863
        assert parts.text_encoder.num_parameters() == 123_060_480
    assert parts_of(SDXL).text_encoder_2.num_parameters() == 694_659_840
    large = parts_of(SD35)
    assert large.text_encoder.num_parameters() == 123_650_304
    assert large.text_encoder_2.num_parameters() == 694_659_840


def test_the_tokenizer_is_clips():
    tokenizer = clip_tokenizer()
    assert tokenizer("A photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("naïve 猫").input_ids == [49406, 1097, 35689, 563, 163, 234, 360, 49407]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 49407)
    assert clip_tokenizer("!").pad_token_id == 0


@pytest.mark.slow
@pytest.mark.parametrize(("model", "rename"), [(SD15, stable_diffusion), (SDXL, stable_diffusion_xl)])
def test_a_checkpoint_of_full_size(model, rename, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", no_network)
    parts = parts_of(model)
    path = file_of_zeros(tmp_path / "painter.safetensors", rename(parts))
    pipe = load_base(str(path), dtype=torch.float16, laid_out=False)
    for name, part in vars(parts).items():
        assert getattr(pipe, name).num_parameters() == part.num_parameters()
    assert pipe.name_or_path == str(path)
    words = pipe.tokenizer("a cat", padding="max_length").input_ids
    assert words[-1] == 49407
    assert main(["models", str(path)]) == 0


@pytest.mark.slow
def test_stable_diffusion_3_with_its_text_encoders(tmp_path):
    """Of Medium's size; it does without T5, but not without CLIP."""
    medium = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384}
    medium |= {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "joint_attention_dim": 4096}
    parts = parts_of(SD35)
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**medium)
    weights = {f"{PREFIX}{key}": weight for key, weight in stable_diffusion_3(transformer).items()} | vae_of(parts.vae)
    path = file_of_zeros(tmp_path / "alone.safetensors", weights)
    with pytest.raises(
        FeraError, match=r"neither in the file nor with fera: text_encoder .*, tokenizer_3 .*t5_tokenizer"
    ):
        load_base(str(path))
    path = file_of_zeros(tmp_path / "whole.safetensors", weights | text_encoders_of_3(parts))
    pipe = load_base(str(path), dtype=torch.float16, laid_out=False)
    assert pipe.transformer.num_parameters() == transformer.num_parameters()
    assert pipe.text_encoder_3 is None and pipe.tokenizer_2.pad_token_id == 0
