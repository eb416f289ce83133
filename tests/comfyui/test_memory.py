"""Adapters where ComfyUI keeps or changes weights in its own ways: little memory, 8 bits, merging, saving, freeing."""

import weakref

import pytest
import torch
from comfyui_cases import in_comfyui, in_diffusers, inputs
from comfyui_engine import engine
from comfyui_twins import TWINS
from comfyui_twins.unets import sd15
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.patching import loaded, routed

pytestmark = pytest.mark.comfyui

CPU = torch.device("cpu")


def adapted(twin, folder, **settings):
    """Diffusers' denoiser with an adapter on layers of all kinds, and the adapter as ComfyUI reads it."""
    settings = {"r": 2, "target_modules": twin.targets} | settings
    denoiser = fill(inject_adapter_in_model(FeraConfig(**settings), twin.denoiser, "default")).eval()
    fera.save_adapter(denoiser, folder)
    return denoiser, read_adapter(folder)


def test_weights_that_wait_elsewhere(tmp_path):
    """Without memory for all ComfyUI brings a layer's weights for its use, and changes them on the way by its LoRA."""
    comfy, twin = engine(), sd15()
    denoiser, adapter = adapted(twin, tmp_path / "ink")
    call = inputs(twin)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {
        f"lora_unet_{layer.replace('.', '_')}.lora_up.weight": torch.randn(64, 2),
        f"lora_unet_{layer.replace('.', '_')}.lora_down.weight": torch.randn(2, 64),
    }
    up, down = lora.values()
    patcher, _ = comfy.sd.load_lora_for_models(routed(twin.patcher(), adapter, 1.0), None, lora, 0.1, 0.0)
    patcher.patch_model(CPU, lowvram_model_memory=1)
    query = twin.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q
    assert twin.model.model_lowvram and query.comfy_cast_weights and query.weight_function
    drawn = in_comfyui(twin, patcher, *call)
    with torch.no_grad():
        denoiser.get_submodule(layer).base_layer.weight += 0.1 * up @ down
    torch.testing.assert_close(drawn, in_diffusers(twin, denoiser, *call), rtol=1e-3, atol=1e-4)
    patcher.unpatch_model(CPU)
    assert not query.weight_function


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_base_in_8_bits(tmp_path, dtype):
    twin = sd15(dtype=dtype)
    denoiser, adapter = adapted(twin, tmp_path / "ink")
    call = inputs(twin)
    assert {weight.dtype for weight in twin.model.diffusion_model.parameters()} == {dtype}
    drawn = in_comfyui(twin, routed(twin.patcher(), adapter, 1.0), *call)
    torch.testing.assert_close(drawn, in_diffusers(twin, denoiser, *call), rtol=1e-3, atol=1e-4)
    assert (drawn - in_comfyui(twin, twin.patcher(), *call)).abs().max() > 1e-2


def test_a_controlnet(tmp_path):
    """What a ControlNet adds lands in the same places, and does not steer the gate."""
    twin = sd15()
    denoiser, adapter = adapted(twin, tmp_path / "ink")
    call = x, sigma, context = inputs(twin)
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 32, 16, 16)] * 2 + [(2, 32, 8, 8)] + [(2, 64, 8, 8)] * 2
    *down, middle = (0.3 * torch.randn(shape, generator=generator) for shape in shapes)
    told = {"input": [], "middle": [middle.clone()], "output": [one.clone() for one in down]}
    drawn = in_comfyui(twin, routed(twin.patcher(), adapter, 1.0), *call, control=told)
    sampling = twin.model.model_sampling
    with torch.no_grad(), fera.trace(denoiser) as steps:
        prediction = denoiser(
            sampling.calculate_input(sigma, x),
            sampling.timestep(sigma).float(),
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
    expected = sampling.calculate_denoised(sigma, prediction, x)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)
    with fera.trace(denoiser) as plain:
        assert not torch.allclose(in_diffusers(twin, denoiser, *call), drawn, atol=1e-2)
    assert torch.equal(steps[0].gates, plain[0].gates)


def test_attention_in_tiles(tmp_path):
    """HyperTile folds parts of the picture into the batch: their rows belong to their own picture's gate."""
    twin = sd15()
    from comfy_extras.nodes_hypertile import HyperTile

    _, adapter = adapted(twin, tmp_path / "ink")
    call = inputs(twin)
    patcher = HyperTile.execute(routed(twin.patcher(), adapter, 1.0), 32, 1, 1, False)[0]
    options = patcher.model_options["transformer_options"]
    rows = []
    query = twin.model.diffusion_model.input_blocks[3][1].transformer_blocks[0].attn1.to_q
    handle = query.register_forward_hook(lambda module, given, found: rows.append(len(found)))
    torch.manual_seed(0)
    together = in_comfyui(twin, patcher, *call, options=options)
    alone = []
    for number in range(2):
        one = slice(number, number + 1)
        torch.manual_seed(0)
        alone.append(in_comfyui(twin, patcher, *(part[one] for part in call), options=options))
    handle.remove()
    assert rows[0] > 2, "it does fold"
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def test_merging_and_saving_do_not_lose_an_adapter(tmp_path):
    comfy, twin = engine(), sd15()
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    _, adapter = adapted(twin, tmp_path / "ink")
    plain, other = twin.patcher(), TWINS["sd15"]().patcher()
    model = routed(plain, adapter, 1.0).clone()
    for merging in (
        lambda: ModelMergeSimple().merge(other, model, 0.5),
        lambda: ModelMergeSimple().merge(other, model.clone(), 0.5),
    ):
        with pytest.raises(FeraError, match="no weights that could be merged into another model"):
            merging()
    with pytest.raises(FeraError, match="a saved checkpoint cannot hold"):
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model)
    assert not (tmp_path / "saved.safetensors").exists()
    # The other way round the adapter stays at work, on the weights that are merged.
    (merged,) = ModelMergeSimple().merge(model, other, 0.5)
    assert len(loaded(merged)) == 1 and merged.patches
    assert plain.get_key_patches("diffusion_model.") and other.get_key_patches("diffusion_model.")
    assert model.get_key_patches().keys() == plain.get_key_patches().keys(), "hooks of ComfyUI ask so"


def test_memory_is_let_go_of(tmp_path):
    """When ComfyUI takes a model off the device, the adapter's tensors there go too."""
    comfy, twin = engine(), sd15()
    _, adapter = adapted(twin, tmp_path / "ink")
    twin.model.diffusion_model.to(torch.bfloat16).dtype = torch.bfloat16
    model = routed(twin.patcher(), adapter, 1.0)
    (one,) = loaded(model).values()
    comfy.model_management.load_models_gpu([model])
    in_comfyui(twin, model, *inputs(twin))
    (moved,) = one.layers._moved.values()
    copy = weakref.ref(moved[0].down)
    del moved
    assert copy() is not None
    comfy.model_management.unload_all_models()
    assert comfy.model_management.loaded_models() == []
    assert copy() is None
