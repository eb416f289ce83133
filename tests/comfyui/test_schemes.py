"""Experts of other schemes than LoRA in ComfyUI's own code do what they do in diffusers."""

import copy

import pytest
import torch
from comfyui_cases import in_comfyui, in_diffusers, inputs
from comfyui_engine import engine
from comfyui_twins import TWINS
from comfyui_twins.unets import sd15
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    inject_adapter_in_model,
)
from safetensors.torch import load_file, save_file
from tiny import make_unet
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.nodes import RecordGates
from fera.comfyui.patching import routed

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]
CONVOLUTIONS = [*LINEAR, "conv1", "conv_shortcut", "proj_in", "downsamplers.0.conv"]
SCHEMES = {
    "loha": (LoHaConfig(r=2, alpha=3), CONVOLUTIONS),
    "loha of cores": (LoHaConfig(r=2, alpha=3, use_effective_conv2d=True), CONVOLUTIONS),
    "lokr": (LoKrConfig(r=2, alpha=3), CONVOLUTIONS),
    "lokr of cores": (
        LoKrConfig(r=2, decompose_both=True, decompose_factor=4, use_effective_conv2d=True),
        CONVOLUTIONS,
    ),
    "dora": (LoraConfig(r=2, lora_alpha=3, use_dora=True), CONVOLUTIONS),
    "oft": (OFTConfig(r=0, oft_block_size=8), [*LINEAR, "proj_in"]),
    "oft, exact": (OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False), LINEAR),
    "oft, constrained": (OFTConfig(r=0, oft_block_size=8, coft=True, eps=0.5), LINEAR),
    "oft, one block": (OFTConfig(r=0, oft_block_size=8, block_share=True), LINEAR),
    "(IA)3": (IA3Config(), CONVOLUTIONS),
}
# Of models with several of diffusers' layers in one, and layers whose outputs are in another order.
FUSED = {
    "loha": LoHaConfig(r=2, alpha=3),
    "dora": LoraConfig(r=2, lora_alpha=3, use_dora=True),
    "oft": OFTConfig(r=0, oft_block_size=8),
    "(IA)3": IA3Config(),
}


def adapted(denoiser, folder, expert, targets, seed=0):
    """A copy of diffusers' denoiser with experts that are not at their start, and the adapter as ComfyUI reads it."""
    settings = FeraConfig(target_modules=targets, expert=copy.deepcopy(expert), num_experts=2)
    denoiser = fill(inject_adapter_in_model(settings, copy.deepcopy(denoiser), "default"), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(denoiser.named_parameters()):
            if ".fera_experts." in name:
                scale = 0.3 if "oft" in name else 0.2 / max(1, weight.ndim - 2)
                weight.add_(scale * torch.randn(weight.shape, generator=generator))
    fera.save_adapter(denoiser, folder)
    return denoiser, read_adapter(folder)


def assert_alike(twin, denoiser, adapter, call):
    patcher, trace = RecordGates().record(routed(twin.patcher(), adapter, 1.0))
    with fera.trace(denoiser) as steps:
        expected = in_diffusers(twin, denoiser, *call)
    drawn = in_comfyui(twin, patcher, *call)
    torch.testing.assert_close(trace[0].gates, steps[0].gates, rtol=0, atol=1e-5)
    assert (drawn - in_comfyui(twin, twin.patcher(), *call)).abs().max() > 1e-2
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=2e-4)
    assert not any(module._forward_hooks for module in twin.model.modules())


@pytest.fixture(scope="module")
def sd():
    return TWINS["sd15"]()


@pytest.mark.comfyui
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("gates", ["differ", "alike"])
def test_predictions_are_those_of_diffusers(sd, scheme, gates, tmp_path):
    expert, targets = SCHEMES[scheme]
    denoiser, adapter = adapted(sd.denoiser, tmp_path / "ink", expert, targets)
    x, sigma, context = inputs(sd)
    assert_alike(sd, denoiser, adapter, (x if gates == "differ" else x[:1].repeat(2, 1, 1, 1), sigma, context))


@pytest.mark.comfyui
@pytest.mark.parametrize("scheme", FUSED)
def test_in_fused_layers(scheme, tmp_path):
    twin = TWINS["flux"]()
    targets = ["to_q", "add_k_proj", "proj_mlp", "norm_out.linear"]
    denoiser, adapter = adapted(twin.denoiser, tmp_path / "ink", FUSED[scheme], targets)
    assert_alike(twin, denoiser, adapter, inputs(twin))


@pytest.mark.comfyui
@pytest.mark.parametrize("scheme", ["dora", "oft"])
def test_beside_another_adapter(sd, scheme, tmp_path):
    """What the schemes make of a layer's weight or output is that of the base, whatever others add."""
    expert, targets = SCHEMES[scheme]
    denoiser, ink = adapted(sd.denoiser, tmp_path / "ink", expert, targets)
    inject_adapter_in_model(FeraConfig(r=2, target_modules=LINEAR), denoiser, "neon")
    fill(denoiser, 1, "neon")
    fera.save_adapter(denoiser, tmp_path / "neon", adapter_name="neon")
    denoiser.set_adapters(["default", "neon"], [1.0, 1.0])
    call, neon = inputs(sd), read_adapter(tmp_path / "neon")
    expected = in_diffusers(sd, denoiser, *call)
    for first, second in ((ink, neon), (neon, ink)):
        drawn = in_comfyui(sd, routed(routed(sd.patcher(), first, 1.0), second, 1.0), *call)
        torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=5e-4)


@pytest.mark.comfyui
def test_a_base_in_8_bits(tmp_path):
    """The lengths of DoRA's directions are asked of the layers; a convolution's cannot be."""
    twin = sd15(dtype=torch.float8_e4m3fn)
    denoiser, adapter = adapted(twin.denoiser, tmp_path / "ink", SCHEMES["dora"][0], LINEAR)
    assert_alike(twin, denoiser, adapter, inputs(twin))
    _, adapter = adapted(twin.denoiser, tmp_path / "conv", SCHEMES["dora"][0], ["conv1"])
    with pytest.raises(FeraError, match="lengths of a convolution's weights"):
        in_comfyui(twin, routed(twin.patcher(), adapter, 1.0), *inputs(twin))


@pytest.mark.comfyui
def test_lengths_are_found_anew_for_other_weights(sd, tmp_path):
    """ComfyUI's own LoRA changes the weights under DoRA; without it they are as before."""
    comfy = engine()
    denoiser, adapter = adapted(sd.denoiser, tmp_path / "ink", SCHEMES["dora"][0], LINEAR)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    name = f"lora_unet_{layer.replace('.', '_')}"
    generator = torch.Generator().manual_seed(5)
    up, down = torch.randn(64, 2, generator=generator), torch.randn(2, 64, generator=generator)
    plain = routed(sd.patcher(), adapter, 1.0)
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    beside, _ = comfy.sd.load_lora_for_models(plain, None, lora, 0.1, 0.0)
    call = inputs(sd)
    first = in_comfyui(sd, plain, *call)
    plain.detach()
    beside.patch_model(torch.device("cpu"))
    try:
        drawn = in_comfyui(sd, beside, *call)
    finally:
        beside.detach()
    torch.testing.assert_close(in_comfyui(sd, plain, *call), first)
    with torch.no_grad():
        denoiser.get_submodule(layer).get_base_layer().weight += 0.1 * up @ down
    torch.testing.assert_close(drawn, in_diffusers(sd, denoiser, *call), rtol=1e-3, atol=2e-4)


# Files


def written(folder, expert):
    denoiser = make_unet()
    settings = FeraConfig(target_modules=["to_q"], expert=expert)
    fera.save_adapter(inject_adapter_in_model(settings, denoiser, "default"), folder)
    return folder


@pytest.mark.parametrize("expert", [BOFTConfig(boft_block_size=4), VeraConfig(r=2)], ids=["BOFT", "VERA"])
def test_schemes_that_cannot_be_routed_there(expert, tmp_path):
    with pytest.raises(FeraError, match="cannot route in ComfyUI; it can: LoRA, CERSA, DoRA, IA3, LOHA, LOKR, OFT"):
        read_adapter(written(tmp_path / "ink", expert))


def test_experts_in_principal_subspaces_are_loras(tmp_path):
    assert len(read_adapter(written(tmp_path / "ink", {"peft_type": "CERSA", "energy": 0.9})).layers) > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda held: held.pop(next(key for key in held if "hada_w1_a" in key)), "its experts of .* are incomplete"),
        (lambda held: held.update(extra=torch.ones(1)), "holds extra, which is no part of 3 experts of scheme LOHA"),
    ],
)
def test_a_damaged_file(changed, message, tmp_path):
    path = written(tmp_path / "ink", LoHaConfig(r=2)) / "adapter_model.safetensors"
    tensors = load_file(path)
    changed(tensors)
    save_file(tensors, path)
    with pytest.raises(FeraError, match=message):
        read_adapter(path)
