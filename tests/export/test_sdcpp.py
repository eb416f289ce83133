"""Files of `fera export` in stable-diffusion.cpp: each tensor has its place, pictures are those of merged weights.

`make test` runs these apart: the environment variable TOOLS names the folder with the tools. The model is FLUX.1 with
one block of each kind, as wide as one head of it; its CLIP has the size that stable-diffusion.cpp insists on, and says
nothing.
"""

import copy
import os
import re
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from models.flux import make_transformer
from peft import inject_adapter_in_model
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.export.writing import export_lora

GATE = [0.2, 0.3, 0.5]

# The original's names of what lies apart in diffusers; several of its layers in their order.
NAMES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_q+attn.to_k+attn.to_v": "img_attn.qkv",
    "attn.add_q_proj+attn.add_k_proj+attn.add_v_proj": "txt_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q+attn.to_k+attn.to_v+proj_mlp": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
for name, original in DOUBLE.items():
    NAMES["+".join(f"transformer_blocks.0.{part}" for part in name.split("+"))] = f"double_blocks.0.{original}"
for name, original in SINGLE.items():
    NAMES["+".join(f"single_transformer_blocks.0.{part}" for part in name.split("+"))] = f"single_blocks.0.{original}"

LAYERS = {
    "kohya": r".*(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out|proj_mlp|single.*proj_out)",
    "diffusers": r".*(to_[qkv]|add_[qk]_proj|to_out\.0|proj_mlp|single.*proj_out|net\.0\.proj|1\.linear|x_embedder)",
}


UNET_LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
]


def original(tensors):
    """Weights by the names of FLUX.1's original code."""
    left = dict(tensors)
    found = {}
    for names, name in NAMES.items():
        for kind in ("weight", "bias"):
            parts = [left.pop(f"{part}.{kind}", None) for part in names.split("+")]
            if parts[0] is not None:
                turned = torch.cat(parts)
                if name == "final_layer.adaLN_modulation.1":
                    turned = torch.cat(turned.chunk(2)[::-1])  # shift and scale
                found[f"{name}.{'scale' if '_norm' in name else kind}"] = turned.contiguous()
    assert not left, list(left)
    return found


@pytest.fixture(scope="module")
def engine():
    sys.path.append(os.environ["TOOLS"])
    from cyllama.sd import stable_diffusion

    stable_diffusion.ggml_backend_load_all()
    return stable_diffusion


def silent_clip(prefix):
    """A CLIP of the size that stable-diffusion.cpp insists on, whose every weight is zero."""
    with torch.device("meta"):
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return {f"{prefix}{name}": torch.zeros(held.shape, dtype=torch.float16) for name, held in clip.state_dict().items()}


def decoder(channels):
    """One of pictures with strong colours: small differences are seen in them."""
    torch.manual_seed(0)
    model = AutoencoderTiny(latent_channels=channels)
    last = model.decoder.layers[-1]
    last.weight.data *= 3 / last.weight.std()
    last.bias.data.fill_(0.5)
    return model.state_dict()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A transformer, and a folder with it and with a small decoder."""
    folder = tmp_path_factory.mktemp("base")
    denoiser = make_transformer(
        guidance_embeds=False,
        in_channels=64,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        axes_dims_rope=(16, 56, 56),
    )
    save_file(original(denoiser.state_dict()), folder / "base.safetensors")
    save_file(decoder(16), folder / "decoder.safetensors")
    save_file(silent_clip("text_model."), folder / "clip.safetensors")
    yield denoiser, folder
    (folder / "clip.safetensors").unlink()


def draw(engine, folder, weights, lora=None, **parts):
    """A picture of one step, values 0 to 255, and what was said on the way."""
    said = []
    engine.set_log_callback(lambda level, text: said.append(text))
    parts = parts or {"diffusion_model_path": str(weights), "clip_l_path": str(folder / "clip.safetensors")}
    settings = engine.SDContextParams(**parts, n_threads=1)
    settings.taesd_path = str(folder / "decoder.safetensors")
    wanted = engine.SDImageGenParams(prompt="a", width=64, height=64, seed=1)
    sampling = wanted.sample_params
    sampling.sample_steps = 1
    wanted.sample_params = sampling
    if lora is not None:
        wanted.set_loras([{"path": str(lora), "multiplier": 1.0}])
    context = engine.SDContext(settings)
    try:
        (picture,) = context.generate_with_params(wanted)
        return picture.to_numpy().astype(np.int64), "".join(said)
    finally:
        del context
        engine.set_log_callback(None)


@pytest.mark.tools
@pytest.mark.parametrize("format", LAYERS)
def test_flux(engine, base, format, tmp_path):
    denoiser, folder = base
    settings = FeraConfig(r=2, target_modules=LAYERS[format])
    adapted = fill(inject_adapter_in_model(settings, copy.deepcopy(denoiser), "default")).eval()
    fera.save_adapter(adapted, tmp_path / "style")
    (file,) = export_lora(tmp_path / "style", tmp_path / "style.safetensors", GATE, format=format).files
    fera.merge(adapted, gate=GATE)
    merged = {name.replace(".base_layer", ""): tensor for name, tensor in adapted.state_dict().items()}
    save_file(original(merged), tmp_path / "merged.safetensors")

    plain, _ = draw(engine, folder, folder / "base.safetensors")
    expected, _ = draw(engine, folder, tmp_path / "merged.safetensors")
    drawn, said = draw(engine, folder, folder / "base.safetensors", file)
    assert_drawn(plain, expected, drawn, said)


def assert_drawn(plain, expected, drawn, said):
    (applied,) = re.findall(r"\((\d+) / (\d+)\) LoRA tensors have been applied", said)
    assert applied[0] == applied[1] and "unused lora tensor" not in said
    effect = abs(plain - expected).mean()
    assert effect > 3
    assert abs(drawn - expected).mean() < 0.01 * effect


@pytest.mark.large_tools
def test_stable_diffusion(engine, tmp_path):
    """Stable Diffusion 1 at its size, with random weights in half precision."""
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half()
    denoiser = denoiser.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in denoiser.named_parameters():
        if weight.ndim == 1:
            weight.fill_(float("norm" in name and name.endswith("weight")))
        else:
            weight.copy_(0.7 * torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
    adapted = fill(inject_adapter_in_model(FeraConfig(r=2, target_modules=UNET_LAYERS), denoiser, "default"))
    fera.save_adapter(adapted, tmp_path / "style")
    (file,) = export_lora(
        tmp_path / "style", tmp_path / "style.safetensors", GATE, tool="sdcpp", dtype=torch.float32
    ).files
    save_file(decoder(4), tmp_path / "decoder.safetensors")
    clip = silent_clip("cond_stage_model.transformer.text_model.")

    def write(path):
        weights = {name.replace(".base_layer", ""): held for name, held in adapted.state_dict().items()}
        weights = {f"unet.{name}": held for name, held in weights.items() if "lora_" not in name and "fera" not in name}
        save_file(weights | clip, path)
        return path

    base = write(tmp_path / "base.safetensors")
    plain, _ = draw(engine, tmp_path, base, model_path=str(base))
    drawn, said = draw(engine, tmp_path, base, file, model_path=str(base))
    base.unlink()
    # As the tool does it: added in float32, and rounded once.
    fera.merge(adapted.float(), gate=GATE)
    adapted.half()
    merged = write(tmp_path / "merged.safetensors")
    expected, _ = draw(engine, tmp_path, merged, model_path=str(merged))
    merged.unlink()
    assert_drawn(plain, expected, drawn, said)
