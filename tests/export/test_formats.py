"""Each format, loaded back by diffusers: the same pictures as the merged adapter."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from adapter_cases import TARGETS, denoiser_of, make_pipeline
from diffusers import EulerDiscreteScheduler, FluxPipeline, StableDiffusionXLPipeline
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers
from export_cases import CONVOLUTIONS, GATE, make_lora, responses, save
from models import CASES
from models import flux as flux_case
from peft import inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import _text_config, make_clip, make_unet, make_vae
from transformers import CLIPTextModelWithProjection
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.export import comfyui
from fera.export.comfyui.lookup import NAMES
from fera.export.formats import FORMATS, encode
from fera.export.tools import TOOLS, format_for
from fera.export.writing import export_lora


def make_sdxl():
    """A StableDiffusionXLPipeline with SDXL's blocks, 16x16 pictures."""
    unet = make_unet(
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    text_encoder, tokenizer = make_clip()
    torch.manual_seed(4)
    pipe = StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


CALL = {"prompt": "a red rocket", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}


def latents(pipe, call):
    return torch.as_tensor(pipe(**call, generator=torch.Generator().manual_seed(0), return_dict=False)[0])


def assert_loads_back(make, folder: Path, format, call=CALL, component=None, **settings):
    """The exported file in a fresh pipeline draws what the merged adapter draws, and not what the base draws."""
    pipe = make()
    denoiser = getattr(pipe, component) if component else denoiser_of(pipe)
    config = FeraConfig(**{"r": 2, "lora_alpha": 5, "target_modules": TARGETS} | settings)
    inject_adapter_in_model(config, denoiser, "default")
    fill(denoiser)
    exported = export_lora(save(pipe, folder / "adapter"), folder / "out", GATE, format=format)
    fera.merge(pipe, GATE)
    fresh = make()
    base = latents(fresh, call)
    if hasattr(fresh, "load_lora_weights"):
        fresh.load_lora_weights(folder / "out", weight_name=exported.files[0].name)
    else:
        getattr(fresh, component).load_lora_adapter(
            folder / "out", prefix=component, weight_name=exported.files[0].name, use_safetensors=True
        )
    drawn, merged = latents(fresh, call), latents(pipe, call)
    assert (drawn - merged).norm() < 0.02 * (merged - base).norm()
    return exported.files[0]


# One case a denoiser: a variant's name goes on from it.
FIRST = [case for case in CASES if not any(case.name.startswith(f"{other.name}-") for other in CASES)]


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_diffusers_holds_what_diffusers_loads(case, tmp_path):
    def make():
        made = case.pipeline()
        made.set_progress_bar_config(disable=True)
        return made

    settings = {"component": case.component, "target_modules": None}
    if isinstance(getattr(make(), case.component), PeftAdapterMixin):
        assert_loads_back(make, tmp_path, "diffusers", case.call, **settings)
    else:
        with pytest.raises(FeraError, match="diffusers loads no LoRA into a"):
            assert_loads_back(make, tmp_path, "diffusers", case.call, **settings)


SD_SETTINGS = {
    "attention": {},
    "every kind of layer": {"target_modules": [*CONVOLUTIONS, *TARGETS]},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"to_q": 3, "attn2.to_k": 1}, "alpha_pattern": {"to_v": 3}},
}


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("settings", SD_SETTINGS.values(), ids=SD_SETTINGS)
def test_stable_diffusion(tmp_path, format, settings):
    assert_loads_back(lambda: make_pipeline("sd"), tmp_path, format, **settings)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_sdxl(tmp_path, format):
    path = assert_loads_back(make_sdxl, tmp_path, format, target_modules=[*CONVOLUTIONS, *TARGETS, "conv"])
    if format == "kohya":
        keys = load_file(path)
        assert not any("down_blocks" in key or "up_blocks" in key for key in keys)
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha" in keys
        assert "lora_unet_input_blocks_3_0_op.lora_down.weight" in keys


def test_kohya_alpha_and_metadata(tmp_path):
    path = assert_loads_back(lambda: make_pipeline("sd"), tmp_path, "kohya")
    tensors = load_file(path)
    alphas = {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_down.weight")}
    assert alphas == {6.0} and ranks == {6}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "6" and metadata["ss_network_alpha"] == "6.0"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"].endswith("/lora")
    assert {"modelspec.implementation", "modelspec.title", "ss_v2", "ss_base_model_version"} <= metadata.keys()
    about = json.loads(metadata["fera_export"])
    assert about["gate"] == GATE and about["approximation"] == "not measured"


def test_flux_double_blocks_in_kohyas_layers(tmp_path):
    def make():
        pipe = flux_case.make_pipeline()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    # diffusers takes single blocks in FLUX's own width only: the next test.
    parts = (
        r"attn\.(to_[qkv]|to_out\.0|add_[qk]_proj|to_add_out)",
        r"(ff|ff_context)\.net\.(0\.proj|2)",
        r"(norm1|norm1_context)\.linear",
    )
    targets = rf".*\.0\.({'|'.join(parts)})"
    path = assert_loads_back(
        make, tmp_path, "kohya", flux_case.CALL, target_modules=targets, exclude_modules=r"single_.*"
    )
    names = {key.split(".")[0].removeprefix("lora_unet_double_blocks_0_") for key in load_file(path)}
    kinds = ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")
    assert names == {f"{stream}_{kind}" for stream in ("img", "txt") for kind in kinds}


def test_flux_single_blocks_in_kohyas_fused_layers():
    layers = {
        "single_transformer_blocks.0.attn.to_q": (3072, 3072),
        "single_transformer_blocks.0.attn.to_v": (3072, 3072),
        "single_transformer_blocks.1.attn.to_k": (3072, 3072),
        "single_transformer_blocks.1.proj_mlp": (3072, 12288),
        "single_transformer_blocks.1.proj_out": (15360, 3072),
        "single_transformer_blocks.1.norm.linear": (3072, 9216),
    }
    lora = make_lora("FluxTransformer2DModel", layers)
    back = responses(FluxPipeline.lora_state_dict(encode(lora, "kohya")[0]))
    for key, expected in responses(encode(lora, "diffusers")[0]).items():
        torch.testing.assert_close(back.pop(key), expected, rtol=1e-5, atol=1e-4)
    assert all(not rest.any() for rest in back.values())  # parts of a fused layer that had no LoRA


COMFYUI = {
    "LTXVideoTransformer3DModel": ("LTXPipeline", {"num_layers": 1}),
    "HiDreamImageTransformer2DModel": (
        "HiDreamImagePipeline",
        {
            **{"patch_size": 2, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8},
            **{"num_attention_heads": 2, "caption_channels": [16, 16], "text_emb_dim": 16, "num_routed_experts": 2},
            **{"num_activated_experts": 1, "axes_dims_rope": (4, 2, 2), "max_resolution": (32, 32)},
            **{"llama_layers": [0, 1]},
        },
    ),
    "QwenImageTransformer2DModel": ("QwenImagePipeline", {"num_layers": 1}),
    "ZImageTransformer2DModel": ("ZImagePipeline", {"n_layers": 1, "n_refiner_layers": 1}),
    "WanTransformer3DModel": ("WanPipeline", {"num_layers": 2}),
}


@pytest.mark.parametrize(
    ("width", "sdxl", "version"), [(768, False, "sd_v1"), (1024, False, "sd_v2"), (2048, True, "sdxl_base_v1-0")]
)
def test_kohya_names_the_base(width, sdxl, version):
    lora = make_lora("UNet2DConditionModel", {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (width, 8)})
    lora.config.base_fingerprint["sample"] = {"add_embedding.linear_1.weight": []} if sdxl else {}
    metadata = encode(lora, "kohya")[1]
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == str(version == "sd_v2")


@pytest.mark.parametrize("denoiser", [name for name in NAMES if name in COMFYUI])
def test_comfyui(denoiser):
    pipeline, settings = COMFYUI[denoiser]
    with torch.device("meta"):
        model = getattr(diffusers, denoiser)(**settings)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    held = {name: (4, 5) for name in names if comfyui.refuses(denoiser, [name]) is None}
    if denoiser == "LTXVideoTransformer3DModel":  # of which diffusers' loader of LoRAs knows no original names
        held = {name: shape for name, shape in held.items() if comfyui.layer_in_comfyui(denoiser, name).path == name}
    assert len(held) >= 8 and any("to_q" in name for name in held)
    lora = make_lora(denoiser, held)
    tensors, _ = encode(lora, "comfyui")
    assert all(key.startswith("diffusion_model.") for key in tensors)
    back = getattr(diffusers, pipeline).lora_state_dict(dict(tensors))
    expected, _ = encode(lora, "diffusers")
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in expected.items())


def test_names_of_the_original_ltx():
    """Diffusers' own conversion of an original checkpoint gives the layers' names back, for every layer."""
    denoiser = "LTXVideoTransformer3DModel"
    with torch.device("meta"):
        model = getattr(diffusers, denoiser)(**COMFYUI[denoiser][1])
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    keys = {
        key.rpartition(".lora_")[0] for key in encode(make_lora(denoiser, dict.fromkeys(names, (4, 5))), "comfyui")[0]
    }
    assert {"diffusion_model.patchify_proj", "diffusion_model.adaln_single.linear"} < keys
    converted = convert_ltx_transformer_checkpoint_to_diffusers({f"model.{key}": torch.zeros(1) for key in keys})
    assert set(converted) == set(names)


def test_names_of_the_original_wan():
    lora = make_lora("WanTransformer3DModel", {"blocks.1.attn2.to_out.0": (4, 5), "blocks.0.ffn.net.0.proj": (4, 5)})
    assert {key.rpartition(".lora_")[0] for key in encode(lora, "comfyui")[0]} == {
        "diffusion_model.blocks.1.cross_attn.o",
        "diffusion_model.blocks.0.ffn.0",
    }


@pytest.mark.parametrize(
    ("format", "denoiser", "layer", "message"),
    [
        ("comfyui", "DiTTransformer2DModel", "a.to_q", "DiTTransformer2DModel are not known to fera"),
        ("comfyui", "Lumina2Transformer2DModel", "layers.0.attn.to_q", "neither keys nor values"),
        ("comfyui", "WanTransformer3DModel", "odd.to_q", "not known to fera for: odd.to_q.* can hold it: diffusers$"),
        (
            "kohya",
            "SD3Transformer2DModel",
            "a.to_q",
            "no names for the layers of a SD3.* can hold it: diffusers, comfyui$",
        ),
        ("kohya", "FluxTransformer2DModel", "x_embedder", "not known to fera for: x_embedder.* diffusers, comfyui$"),
        ("diffusers", "PixArtTransformer2DModel", "a.to_q", "loads no LoRA into a PixArt.* can hold it: comfyui$"),
        ("webui", "UNet2DConditionModel", "a.to_q", "unknown format 'webui'; there are: diffusers, kohya, comfyui"),
    ],
)
def test_what_a_format_cannot_hold(format, denoiser, layer, message):
    with pytest.raises(FeraError, match=message):
        encode(make_lora(denoiser, {layer: (4, 5)}), format)


def test_an_adapter_that_names_no_denoiser():
    lora = make_lora("UNet2DConditionModel", {"a.to_q": (4, 5)})
    lora.config.base_fingerprint = None
    with pytest.raises(FeraError, match="does not say which denoiser"):
        encode(lora, "diffusers")


def test_diffusers_metadata_is_a_config_of_peft(tmp_path):
    path = assert_loads_back(
        lambda: make_pipeline("sd"), tmp_path, "diffusers", rank_pattern={"to_q": 3}, alpha_pattern={"to_v": 3}
    )
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert all(key.startswith("unet.") for key in settings)
    assert settings["unet.r"] == settings["unet.lora_alpha"] == 9


def test_the_command_line_offers_these_formats():
    from fera.cli import export

    assert tuple(FORMATS) == export.FORMATS and TOOLS == export.TOOLS


def test_comfyui_names_of_transformers_and_unets():
    """By `transformer.` and diffusers' path; of UNets as kohya."""
    keys = encode(make_lora("FluxTransformer2DModel", {"transformer_blocks.0.attn.to_q": (4, 5)}), "comfyui")[0]
    assert set(keys) == {f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight" for side in "AB"}
    unet = make_lora("UNet2DConditionModel", {"mid_block.attentions.0.proj_in": (4, 5)})
    assert encode(unet, "comfyui")[0].keys() == encode(unet, "kohya")[0].keys()


def test_comfyui_fuses_the_attention_of_lumina_2():
    """Weights of the fused layer are those of its parts, one under the other; what has no LoRA stays as it is."""
    layers = {"layers.0.attn.to_q": (6, 6), "layers.0.attn.to_v": (6, 4), "layers.0.attn.to_out.0": (6, 6)}
    lora = make_lora("Lumina2Transformer2DModel", layers)
    tensors = encode(lora, "comfyui")[0]
    assert {key.rpartition(".lora_")[0] for key in tensors} == {
        "diffusion_model.layers.0.attention.qkv",
        "diffusion_model.layers.0.attention.out",
    }
    key = "diffusion_model.layers.0.attention.qkv.lora_"
    fused = tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
    q, v = (lora.layers[f"layers.0.attn.to_{part}"] for part in "qv")
    torch.testing.assert_close(fused, torch.cat([q.up @ q.down, torch.zeros(4, 6), v.up @ v.down]))


@pytest.mark.parametrize(
    ("tool", "denoiser", "format"),
    [
        ("comfyui", "UNet2DConditionModel", "comfyui"),
        ("kohya", "SD3Transformer2DModel", "kohya"),
        ("diffusers", "WanTransformer3DModel", "diffusers"),
        ("forge", "UNet2DConditionModel", "kohya"),
        ("forge", "FluxTransformer2DModel", "diffusers"),
        ("invokeai", "UNet2DConditionModel", "kohya"),
        ("invokeai", "QwenImageTransformer2DModel", "diffusers"),
        ("sdcpp", "FluxTransformer2DModel", "kohya"),
    ],
)
def test_the_format_of_a_tool(tool, denoiser, format):
    assert format_for(tool, make_lora(denoiser, {"a.to_q": (4, 5)})) == format


def test_a_tool_that_does_not_know_the_base():
    lora = make_lora("WanTransformer3DModel", {"blocks.0.attn1.to_q": (4, 5)})
    with pytest.raises(
        FeraError, match="forge is not known to read LoRAs of a Wan.*name the format: diffusers, comfyui"
    ):
        format_for("forge", lora)
    with pytest.raises(FeraError, match="unknown tool 'webui'; there are: comfyui, kohya"):
        format_for("webui", lora)


@pytest.mark.parametrize("tool", ["kohya", "sdcpp"])
def test_a_tool_that_passes_over_layers(tool):
    lora = make_lora("UNet2DConditionModel", {"mid_block.a.to_q": (4, 5), "time_embedding.linear_1": (4, 5)})
    with pytest.raises(FeraError, match=f"{tool} leaves out layers .*: time_embedding.linear_1. Name the format"):
        format_for(tool, lora)
    assert format_for("forge", lora) == "kohya"


@pytest.mark.parametrize(
    ("width", "architecture"), [(768, "stable-diffusion-v1/lora"), (1024, "stable-diffusion-v2-512/lora")]
)
def test_modelspec_names_the_base_as_kohya_does(width, architecture):
    lora = make_lora("UNet2DConditionModel", {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (width, 8)})
    assert encode(lora, "kohya")[1]["modelspec.architecture"] == architecture
