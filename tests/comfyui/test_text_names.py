"""LoRA of T5 and of language models on ComfyUI's own text encoders: its names, and its weights with a patch."""

import importlib

import pytest
import torch
from comfyui_engine import engine
from text_cases import make_pipeline, write_text_adapter

from fera.adapters.file import open_adapter
from fera.adapters.text.comfyui_names import comfyui_name
from fera.comfyui.text import patches

pytestmark = pytest.mark.comfyui

LANGUAGE_MODEL = ("q_proj", "k_proj", "v_proj", "o_proj")
T5 = ("q", "k", "v", "o")


@pytest.mark.parametrize(
    ("module", "model", "path", "layers"),
    [
        ("qwen_image", "QwenImageTEModel", "model.language_model.layers.3.self_attn", LANGUAGE_MODEL),
        ("hunyuan_image", "HunyuanImageTEModel", "model.language_model.layers.3.self_attn", LANGUAGE_MODEL),
        ("lumina2", "LuminaModel", "layers.3.self_attn", LANGUAGE_MODEL),
        ("hunyuan_video", "HunyuanVideoClipModel", "layers.3.self_attn", LANGUAGE_MODEL),
        ("flux", "Flux2TEModel", "model.language_model.layers.3.self_attn", LANGUAGE_MODEL),
        ("z_image", "ZImageTEModel", "model.layers.3.self_attn", LANGUAGE_MODEL),
        ("hidream", "HiDreamTEModel", "encoder.block.3.layer.0.SelfAttention", T5),
        ("wan", "WanT5Model", "encoder.block.3.layer.0.SelfAttention", T5),
    ],
)
def test_its_models_have_the_names(module, model, path, layers):
    """Of the real sizes, without weights."""
    engine()
    import comfy.lora

    make = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), model)
    with torch.device("meta"):
        encoders = make(device="meta", dtype=torch.bfloat16)
    known = comfy.lora.model_lora_keys_clip(encoders, {})
    names = [comfyui_name("text_encoder", f"{path}.{layer}") for layer in layers]
    assert all(name in known for name in names), names


def test_t5_of_flux_is_patched_as_it_is_in_the_pipeline(tmp_path):
    engine()
    import comfy.lora
    from comfy.text_encoders.flux import FluxClipModel

    pipe = make_pipeline("flux")
    options = {f"{name}_model_config": encoder.config.to_dict() for name, encoder in (("clip_l", pipe.text_encoder),)}
    options["t5xxl_model_config"] = pipe.text_encoder_2.config.to_dict()
    model = FluxClipModel(dtype=torch.float32, model_options=options)
    own = model.t5xxl.transformer
    weights = {key: value for key, value in pipe.text_encoder_2.state_dict().items() if "embed_tokens" not in key}
    own.load_state_dict(weights, strict=True)
    text = open_adapter(write_text_adapter("flux", tmp_path / "toy", token=None)).text
    found = patches(text, comfy.lora.model_lora_keys_clip(model, {}), comfy.lora.load_lora)
    lora = text.lora("text_encoder_2")
    for path, (down, up) in lora.layers.items():
        key = f"t5xxl.transformer.{path}.weight"
        base = pipe.text_encoder_2.get_submodule(path).weight
        patched = comfy.lora.calculate_weight([(1.0, found[key], 1.0, None, None)], base.detach().clone(), key)
        torch.testing.assert_close(patched, base + lora.alpha / lora.rank * up @ down)
