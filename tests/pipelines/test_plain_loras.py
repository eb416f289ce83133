"""Plain LoRAs that `fera.load_adapter` puts beside routed adapters, in every naming."""

import copy

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline
from export_cases import CONVOLUTIONS, save
from models import flux, qwen_image, wan, z_image
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_unet
from tuner_cases import fill

import fera
from fera import FeraError
from fera.export.writing import export_lora
from fera.models.components import denoisers
from fera.pipelines.adapters import adapters

TARGETS = ["to_q", "to_out.0"]
GATE = [0.2, 0.3, 0.5]
CALL = {"prompt": PROMPTS[:1], "num_inference_steps": 2, "output_type": "latent"}
NAMINGS = {
    "diffusers, Stable Diffusion": (lambda: make_pipeline("sd"), "diffusers", CALL, TARGETS),
    "kohya, Stable Diffusion": (lambda: make_pipeline("sd"), "kohya", CALL, [*CONVOLUTIONS, *TARGETS]),
    "comfyui, Stable Diffusion": (lambda: make_pipeline("sd"), "comfyui", CALL, TARGETS),
    "diffusers, FLUX.1": (flux.make_pipeline, "diffusers", flux.CALL, TARGETS),
    # Of single blocks diffusers knows where the parts lie in the real model alone.
    "kohya, FLUX.1": (
        flux.make_pipeline,
        "kohya",
        flux.CALL,
        [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_v", "add_k_proj", "to_out.0")],
    ),
    "comfyui, FLUX.1": (flux.make_pipeline, "comfyui", flux.CALL, TARGETS),
    "comfyui, Qwen-Image": (qwen_image.make_pipeline, "comfyui", qwen_image.CALL, TARGETS),
    "comfyui, Wan": (wan.make_pipeline, "comfyui", wan.CALL, ["to_q", "to_k", "to_v", "to_out.0"]),
    "comfyui, Z-Image": (z_image.make_pipeline, "comfyui", z_image.CALL, ["to_q", "to_k", "to_v", "to_out.0"]),
}


def with_routed(make, seed, targets=TARGETS):
    """A pipeline with a routed adapter whose weights count."""
    pipe = make()
    name, denoiser = next(iter(denoisers(pipe).items()))
    denoiser.add_adapter(fera.FeraConfig(r=2, target_modules=targets, component=name), f"ink{seed}")
    fill(denoiser, seed, f"ink{seed}")
    return pipe


def draw(pipe, call):
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(**call, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    return drawn if torch.is_tensor(drawn) else torch.as_tensor(drawn)


@pytest.mark.parametrize(("make", "format", "call", "targets"), NAMINGS.values(), ids=NAMINGS)
def test_beside_a_routed_adapter(make, format, call, targets, tmp_path):
    """The two together are the routed one on the base with the LoRA in its weights."""
    other = with_routed(make, 1, targets)
    fera.save_adapter(other, tmp_path / "other", adapter_name="ink1")
    path = export_lora(tmp_path / "other", tmp_path / "plain.safetensors", GATE, format=format).files[0]
    fera.merge(other, gate=GATE, adapter_name="ink1")
    name = next(iter(denoisers(other)))
    denoiser = getattr(other, name)
    denoiser.add_adapter(fera.FeraConfig(r=2, target_modules=TARGETS), "ink0")
    fill(denoiser, 0, "ink0")
    expected = draw(other, call)

    pipe = with_routed(make, 0)
    routed = draw(pipe, call)
    fera.load_adapter(pipe, path, adapter_name="plain")
    assert adapters(pipe) == ["ink0", "plain"]
    alone = draw(pipe, call)
    fera.set_adapters(pipe, ["ink0", "plain"])
    torch.testing.assert_close(draw(pipe, call), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(alone, expected, atol=1e-3) and not torch.allclose(alone, routed, atol=1e-3)
    fera.set_adapters(pipe, ["ink0"])
    assert torch.equal(draw(pipe, call), routed)


def plain_folder(folder, **settings):
    """A folder that PEFT wrote."""
    model = get_peft_model(
        make_unet(), LoraConfig(**{"r": 3, "target_modules": TARGETS, "init_lora_weights": False} | settings)
    )
    model.save_pretrained(folder)
    return model


def test_a_folder_of_peft_and_a_denoiser_alone(tmp_path):
    model = plain_folder(tmp_path / "plain", lora_alpha=5, rank_pattern={"to_q": 1})
    unet = make_unet()
    fera.load_adapter(unet, tmp_path / "plain", adapter_name="plain")
    call = torch.randn(1, 4, 8, 8), 500, torch.randn(1, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(unet(*call).sample, model(*call).sample)
    assert not any(parameter.requires_grad for name, parameter in unet.named_parameters() if "lora" not in name)


def test_its_part_in_the_text_encoder_follows(tmp_path):
    pipe = make_pipeline("sd")
    plain = copy.deepcopy(pipe)
    for module in (plain.unet, plain.text_encoder):
        targets = ["to_q"] if module is plain.unet else ["q_proj"]
        module.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), "default")
    type(plain).save_lora_weights(
        str(tmp_path / "plain"),
        unet_lora_layers=_lora_of(plain.unet),
        text_encoder_lora_layers=_lora_of(plain.text_encoder),
    )
    add_adapter(pipe)
    before = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0]
    fera.load_adapter(pipe, tmp_path / "plain", adapter_name="plain")
    with torch.no_grad():
        full = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0]
        fera.set_adapters(pipe, ["default", "plain"], [1.0, 0.5])
        half = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0]
        fera.set_adapters(pipe, "default")
        none = pipe.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0]
    assert torch.equal(none, before)
    assert 0 < (half - before).norm() < (full - before).norm()


def _lora_of(module):
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(module)


def test_what_does_not_fit_loads_nothing(tmp_path):
    pipe = add_adapter(make_pipeline("sd"))
    folder = save(pipe, tmp_path / "adapter")
    path = export_lora(folder, tmp_path / "plain.safetensors", GATE).files[0]
    with pytest.raises(FeraError, match="there is an adapter 'default' already"):
        fera.load_adapter(pipe, path)
    with pytest.raises(FeraError, match="no denoiser 'prior' here; there are: unet"):
        fera.load_adapter(pipe, path, adapter_name="plain", component="prior")
    with pytest.raises(FeraError, match="hotswap=True replaces the weights of a routed adapter"):
        fera.load_adapter(pipe, path, hotswap=True)
    with pytest.raises(FeraError, match="give that, not its denoiser alone"):
        fera.load_adapter(pipe.unet, path, adapter_name="plain")
    tensors = {key.replace("to_q", "to_queries"): tensor for key, tensor in load_file(path).items()}
    save_file(tensors, tmp_path / "other.safetensors", {"format": "pt"})
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    with pytest.raises(FeraError, match="to_queries|does not fit"):
        fera.load_adapter(pipe, tmp_path / "other.safetensors", adapter_name="plain")
    assert adapters(pipe) == ["default"]
    assert before.keys() == pipe.unet.state_dict().keys()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FeraError, match="plain.safetensors"):
        fera.load_adapter(pipe, path, adapter_name="plain")
