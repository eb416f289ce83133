"""Files of text encoders at the sizes that people have: their shapes make the configuration, without weights."""

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from zero_files import file_of_zeros

from fera.errors import FeraError
from fera.pipelines.file_parts import pieces_of, placed_pieces
from fera.pipelines.text_kinds import text_kind_of

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
T5_XXL |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
QWEN_3 = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN_3 |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
QWEN_25 = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
QWEN_25 |= {"num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6}
QWEN_25 |= {"rope_parameters": {"rope_theta": 1e6, "type": "mrope", "mrope_section": [16, 24, 24]}}
EYES = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
EYES |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
SEEING = {"text_config": QWEN_25, "vision_config": EYES, "tie_word_embeddings": False}


def with_wrapper(key):
    return key if key.startswith("text_") else f"text_model.{key}"


def with_model(key):
    return f"model.{key}"


def before_it_moved(key):
    return key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def as_it_is(key):
    return key


# Class, configuration, what a file's names are, the number of parameters that the published one has.
CASES = {
    "CLIP L": (CLIPTextModel, CLIPTextConfig(**CLIP_L), with_wrapper, 123_060_480),
    "CLIP L of today": (CLIPTextModel, CLIPTextConfig(**CLIP_L), as_it_is, 123_060_480),
    "CLIP G": (CLIPTextModelWithProjection, CLIPTextConfig(**CLIP_G, projection_dim=1280), as_it_is, 694_659_840),
    "T5 XXL": (T5EncoderModel, T5Config(**T5_XXL, vocab_size=32128), as_it_is, 4_762_310_656),
    "UMT5 XXL": (UMT5EncoderModel, UMT5Config(**T5_XXL, vocab_size=256384), as_it_is, 5_680_910_336),
    "Qwen3 4B": (Qwen3Model, Qwen3Config(**QWEN_3), with_model, 4_022_468_096),
    "Qwen2.5-VL 7B": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(**SEEING), before_it_moved, 8_292_166_656),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_say_what_the_settings_were(name):
    cls, config, rename, parameters = CASES[name]
    with torch.device("meta"):
        model = cls(config)
    assert model.num_parameters() == parameters
    shapes = {rename(key): tuple(weight.shape) for key, weight in model.state_dict().items()}
    kind = text_kind_of(shapes)
    assert kind is not None and kind.name.split(" ")[0] == name.split(" ")[0] and cls.__name__.startswith(kind.fits)
    said = cls.config_class(**kind.settings(shapes))
    with torch.device("meta"):
        other = cls(said)
    expected = {key: weight.shape for key, weight in model.state_dict().items()}
    assert {key: weight.shape for key, weight in other.state_dict().items()} == expected
    if name == "Qwen2.5-VL 7B":
        for ours, theirs in ((said.text_config, config.text_config), (said.vision_config, config.vision_config)):
            told = {key: value for key, value in theirs.to_dict().items() if value is not None}
            assert {key: value for key, value in ours.to_dict().items() if key in told} == told


def test_other_files_are_of_no_kind():
    """A language model of another kind is one whose settings a folder has to say."""
    assert text_kind_of({}) is None and text_kind_of({"decoder.conv_in.weight": (1, 1, 3, 3)}) is None
    with torch.device("meta"):
        gemma = Gemma2Model(Gemma2Config(num_hidden_layers=1))
    kind = text_kind_of({f"model.{key}": tuple(weight.shape) for key, weight in gemma.state_dict().items()})
    assert kind is not None and kind.settings is None and "Gemma2Model".startswith(kind.fits)


def test_the_two_clips_of_stable_diffusion_3(tmp_path):
    """Whichever comes first."""
    files = {}
    for name, settings in (("clip_l", CLIP_L), ("clip_g", CLIP_G)):
        with torch.device("meta"):
            model = CLIPTextModelWithProjection(CLIPTextConfig(**settings | {"num_hidden_layers": 1}))
        files[name] = file_of_zeros(tmp_path / f"{name}.safetensors", model.state_dict())
    clip = ["transformers", "CLIPTextModelWithProjection"]
    parts = {"text_encoder": clip, "text_encoder_2": clip}
    placed = placed_pieces(pieces_of([files["clip_g"], files["clip_l"]], ()), parts)
    assert {name: file for name, (file, _) in placed.texts.items()} == {
        "text_encoder": files["clip_l"],
        "text_encoder_2": files["clip_g"],
    }
    with pytest.raises(FeraError, match=r"clip_l\.safetensors holds CLIP, and this pipeline has no text encoder of"):
        placed_pieces(pieces_of([files["clip_l"]], ()), {"text_encoder": ["transformers", "T5EncoderModel"]})
