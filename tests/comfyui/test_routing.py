"""In ComfyUI's own code a routed adapter does what it does in diffusers.

`make test` runs these apart, with the environment variable COMFYUI (`comfyui_engine`).
"""

import copy

import pytest
import torch
from comfyui_cases import in_comfyui, in_diffusers, inputs
from comfyui_engine import engine
from comfyui_twins import TWINS
from comfyui_twins.hunyuan import hunyuan_image_to_video
from comfyui_twins.unets import sd15
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.control import GateControl
from fera.comfyui.latent import noise_level_of
from fera.comfyui.nodes import RecordGates, SetGate, ShowGates
from fera.comfyui.patching import loaded, routed

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module", params=TWINS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def twin(name):
    return TWINS[name]()


@pytest.fixture(scope="module")
def sd():
    return TWINS["sd15"]()


def adapted(twin, folder, seed=0, **settings):
    """A copy of diffusers' denoiser with an adapter that is not at its start, and the adapter as ComfyUI reads it."""
    denoiser = inject_adapter_in_model(FeraConfig(**{"r": 2} | settings), copy.deepcopy(twin.denoiser), "default")
    fill(denoiser, seed).eval()
    fera.save_adapter(denoiser, folder)
    return denoiser, read_adapter(folder)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_gates_and_predictions_are_those_of_diffusers(twin, name, tmp_path):
    settings = {"router_input": "log_energies+timestep", "temperature": 20.0} | (
        {"target_modules": twin.targets} if twin.targets else {}
    )
    denoiser, adapter = adapted(twin, tmp_path / "ink", **settings)
    call = inputs(twin)
    before = weights(twin.model)
    patcher, trace = RecordGates().record(routed(twin.patcher(), adapter, 1.0))
    with fera.trace(denoiser) as steps:
        expected = in_diffusers(twin, denoiser, *call)
    drawn = in_comfyui(twin, patcher, *call)
    torch.testing.assert_close(trace[0].gates, steps[0].gates, rtol=0, atol=1e-5)
    torch.testing.assert_close(trace[0].indicator, steps[0].indicator, rtol=0, atol=1e-5)
    assert (steps[0].gates[0] - steps[0].gates[1]).abs().max() > 1e-3
    base = in_comfyui(twin, twin.patcher(), *call)
    assert (drawn - base).abs().max() > 1e-2
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=twin.rounding)
    assert all(torch.equal(before[key], value) for key, value in twin.model.state_dict().items())
    assert not any(module._forward_hooks for module in twin.model.modules())


def test_the_order_of_a_batch_and_its_chunks_do_not_matter(sd, tmp_path):
    _, adapter = adapted(sd, tmp_path / "ink")
    x, sigma, context = inputs(sd, batch=4)
    patcher = routed(sd.patcher(), adapter, 1.0)
    whole = in_comfyui(sd, patcher, x, sigma, context)
    order = torch.tensor([2, 0, 3, 1])
    turned = in_comfyui(sd, patcher, x[order], sigma, context[order])
    torch.testing.assert_close(turned, whole[order], rtol=1e-4, atol=1e-4)
    chunks = [in_comfyui(sd, patcher, x[n : n + 1], sigma[:1], context[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [9, 8], ids=["inpainting", "InstructPix2Pix"])
def test_channels_of_a_condition_do_not_steer_the_gate(channels, tmp_path):
    """A base for inpainting is given a mask and the masked picture behind the latent, one for edits a picture."""
    twin = sd15(in_channels=channels)
    denoiser, adapter = adapted(twin, tmp_path / "ink")
    x, sigma, context = inputs(twin)
    patcher, trace = RecordGates().record(routed(twin.patcher(), adapter, 1.0))
    conditions = [
        torch.randn(2, channels - 4, *x.shape[2:], generator=torch.Generator().manual_seed(n)) for n in range(2)
    ]
    drawn = [in_comfyui(twin, patcher, x, sigma, context, c_concat=condition) for condition in conditions]
    assert torch.equal(trace[0].gates, trace[1].gates) and not torch.equal(*drawn)
    sampling = twin.model.model_sampling
    latent = torch.cat([sampling.calculate_input(sigma, x), conditions[0]], dim=1)
    with torch.no_grad(), fera.trace(denoiser) as steps:
        prediction = twin.predict(denoiser, latent, noise_level_of(sampling, sigma), context)
    torch.testing.assert_close(trace[0].gates, steps[0].gates, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn[0], sampling.calculate_denoised(sigma, prediction, x), rtol=1e-3, atol=1e-4)


def test_two_adapters_and_one_of_comfyuis_own(sd, tmp_path):
    """Each adds what it adds alone, in every layer; ComfyUI's own LoRA is in the base's weights."""
    comfy = engine()
    denoiser, ink = adapted(sd, tmp_path / "ink")
    _, neon = adapted(sd, tmp_path / "neon", seed=1)
    call = inputs(sd)
    inject_adapter_in_model(FeraConfig(r=2), denoiser, "neon")
    fill(denoiser, 1, "neon")
    denoiser.set_adapters(["default", "neon"], [1.0, 0.5])
    both = routed(routed(sd.patcher(), ink, 1.0), neon, 0.5)
    torch.testing.assert_close(in_comfyui(sd, both, *call), in_diffusers(sd, denoiser, *call), rtol=1e-3, atol=1e-4)
    other = routed(routed(sd.patcher(), neon, 0.5), ink, 1.0)
    torch.testing.assert_close(in_comfyui(sd, other, *call), in_comfyui(sd, both, *call), rtol=1e-4, atol=1e-4)

    generator = torch.Generator().manual_seed(5)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {
        f"{layer}.lora_down.weight": torch.randn(2, 64, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(64, 2, generator=generator),
    }
    beside, _ = comfy.sd.load_lora_for_models(routed(sd.patcher(), ink, 1.0), None, lora, 0.1, 0.0)
    weight = sd.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    plain = inject_adapter_in_model(FeraConfig(r=2), copy.deepcopy(sd.denoiser), "default")
    fill(plain, 0)
    with torch.no_grad():
        changed = plain.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.base_layer.weight
        changed += 0.1 * lora[f"{layer}.lora_up.weight"] @ lora[f"{layer}.lora_down.weight"]
        assert not torch.equal(changed, weight)
    beside.patch_model(torch.device("cpu"))
    try:
        drawn = in_comfyui(sd, beside, *call)
    finally:
        beside.unpatch_model(torch.device("cpu"))
    torch.testing.assert_close(drawn, in_diffusers(sd, plain, *call), rtol=1e-3, atol=1e-4)


def test_clones_have_their_own_adapters(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    _, neon = adapted(sd, tmp_path / "neon", seed=1)
    base, call = sd.patcher(), inputs(sd)
    plain = in_comfyui(sd, base, *call)
    inked, neoned = routed(base, ink, 1.0), routed(base, neon, 1.0)
    first = in_comfyui(sd, inked, *call)
    second = in_comfyui(sd, neoned, *call)
    assert torch.equal(in_comfyui(sd, inked.clone(), *call), first)
    assert torch.equal(in_comfyui(sd, base, *call), plain)
    assert not torch.equal(first, second) and not torch.equal(first, plain)


def test_a_step_that_fails_leaves_nothing_behind(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    call = inputs(sd)
    patcher = routed(sd.patcher(), ink, 1.0)

    def fail(*arguments):
        raise RuntimeError("out of memory")

    hook = sd.model.diffusion_model.out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        in_comfyui(sd, patcher, *call)
    hook.remove()
    assert not any(module._forward_hooks for module in sd.model.modules())


def test_strength(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    call = inputs(sd)
    plain = in_comfyui(sd, sd.patcher(), *call)
    assert torch.equal(in_comfyui(sd, routed(sd.patcher(), ink, 0.0), *call), plain)
    full = in_comfyui(sd, routed(sd.patcher(), ink, 1.0), *call)
    less = in_comfyui(sd, routed(sd.patcher(), ink, 1e-3), *call)
    assert 0 < (less - plain).abs().max() < 0.02 * (full - plain).abs().max()
    with pytest.raises(FeraError, match="strength must be a finite number"):
        routed(sd.patcher(), ink, float("nan"))


def test_half_precision(sd, tmp_path):
    """Experts in the precision of the layers' inputs, the router in full."""
    _, ink = adapted(sd, tmp_path / "ink")
    x, sigma, context = inputs(sd)
    expected = in_comfyui(sd, routed(sd.patcher(), ink, 1.0), x, sigma, context)
    half = TWINS["sd15"]().model
    half.diffusion_model.to(torch.bfloat16)
    half.diffusion_model.dtype = torch.bfloat16
    patcher = engine().model_patcher.ModelPatcher(half, torch.device("cpu"), torch.device("cpu"))
    patcher, trace = RecordGates().record(routed(patcher, ink, 1.0))
    drawn = in_comfyui(sd, patcher, x, sigma, context)
    assert trace[0].gates.dtype == torch.float32
    assert (drawn.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("name", ["wan22_5b", "ltx", "ltx2"])
def test_a_given_frame_does_not_steer_the_gate(name, tmp_path):
    """It lies in the latent, and its tokens have no noise. What is drawn in its place, both throw away."""
    twin = TWINS[name]()
    denoiser, adapter = adapted(twin, tmp_path / "ink", router_input="log_energies+timestep", temperature=20.0)
    x, sigma, context = inputs(twin)
    mask = torch.ones(1, 1, x.shape[2], 1, 1)
    mask[:, :, 0] = 0
    patcher, trace = RecordGates().record(routed(twin.patcher(), adapter, 1.0))
    drawn = in_comfyui(twin, patcher, x, sigma, context, denoise_mask=mask.expand(len(x), *x.shape[1:]))
    sampling = twin.model.model_sampling
    level = noise_level_of(sampling, sigma)[:, None] * mask[:, 0, :, 0, 0]
    with torch.no_grad(), fera.trace(denoiser) as steps:
        prediction = twin.predict(denoiser, sampling.calculate_input(sigma, x), level, context)
    torch.testing.assert_close(trace[0].gates, steps[0].gates, rtol=0, atol=1e-5)
    expected = sampling.calculate_denoised(sigma, prediction, x)
    torch.testing.assert_close(drawn[:, :, 1:], expected[:, :, 1:], rtol=1e-3, atol=twin.rounding)


def test_the_gate_of_hunyuan_video_with_a_given_picture(tmp_path):
    twin = hunyuan_image_to_video()
    denoiser, adapter = adapted(twin, tmp_path / "ink", target_modules=["to_q", "proj_mlp"], temperature=20.0)
    call = inputs(twin)
    patcher, trace = RecordGates().record(routed(twin.patcher(), adapter, 1.0))
    drawn = in_comfyui(twin, patcher, *call)
    with fera.trace(denoiser) as steps:
        in_diffusers(twin, denoiser, *call)
    torch.testing.assert_close(trace[0].gates, steps[0].gates, rtol=0, atol=1e-5)
    assert (drawn - in_comfyui(twin, twin.patcher(), *call)).abs().max() > 1e-2


def test_an_adapter_in_a_model_that_is_built_on_its_base(tmp_path):
    """Wan's VACE has the layers of Wan's text to video, and others beside them."""
    base, built = TWINS["wan"](), TWINS["wan_vace"]()
    _, adapter = adapted(base, tmp_path / "ink")
    call = inputs(base)
    gates = []
    for twin in (base, built):
        patcher, trace = RecordGates().record(routed(twin.patcher(), adapter, 1.0))
        drawn = in_comfyui(twin, patcher, *call)
        assert (drawn - in_comfyui(twin, twin.patcher(), *call)).abs().max() > 1e-2
        gates.append(trace[0].gates)
    assert torch.equal(*gates)


# The gate's node


def gate(model, **settings):
    given = {"adapter": "", "fixed_gate": "", "solo": "", "mute": "", "temperature": 1.0}
    return SetGate().set_gate(model, **given | {"start_percent": 0.0, "end_percent": 1.0} | settings)[0]


def test_a_fixed_gate_is_a_static_lora(sd, tmp_path):
    denoiser, ink = adapted(sd, tmp_path / "ink")
    call = inputs(sd)
    drawn = in_comfyui(sd, gate(routed(sd.patcher(), ink, 1.0), fixed_gate="0.2, 0.3, 0.5"), *call)
    fera.merge(denoiser, gate=[0.2, 0.3, 0.5])
    torch.testing.assert_close(drawn, in_diffusers(sd, denoiser, *call), rtol=1e-3, atol=1e-4)


def test_solo_and_mute(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    call, model = inputs(sd), routed(sd.patcher(), ink, 1.0)
    alone = in_comfyui(sd, gate(model, solo="2"), *call)
    assert torch.equal(in_comfyui(sd, gate(model, mute="1, 3"), *call), alone)
    assert torch.equal(in_comfyui(sd, gate(model, mute="1 2 3"), *call), in_comfyui(sd, sd.patcher(), *call))
    assert not torch.equal(alone, in_comfyui(sd, model, *call)), "and the model before the node is as it was"
    with pytest.raises(FeraError, match="has 3 experts; there is no expert 4"):
        gate(model, solo="4")
    with pytest.raises(FeraError, match="has no FeRA adapter 'gold'; it has: ink"):
        gate(model, adapter="gold")


def test_a_part_of_sampling(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    model = gate(routed(sd.patcher(), ink, 1.0), start_percent=0.25, end_percent=0.75)
    acts = []
    for part in (0.0, 0.2, 0.3, 0.7, 0.8, 1.0):
        call = inputs(sd, part=max(part, 1e-4) if part < 1 else 0.9999)
        acts.append(not torch.equal(in_comfyui(sd, model, *call), in_comfyui(sd, sd.patcher(), *call)))
    assert acts == [False, False, True, True, False, False]


def test_gates_of_one_of_two_adapters(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    _, neon = adapted(sd, tmp_path / "neon", seed=1)
    model = gate(routed(routed(sd.patcher(), ink, 1.0), neon, 1.0), adapter="neon", mute="1")
    controls = {one.adapter.name: one.control for one in loaded(model).values()}
    assert controls == {"ink": GateControl(), "neon": GateControl(muted=frozenset({0}))}


def test_the_picture_of_a_trace(sd, tmp_path):
    _, ink = adapted(sd, tmp_path / "ink")
    model, trace = RecordGates().record(routed(sd.patcher(), ink, 1.0))
    with pytest.raises(FeraError, match="nothing was recorded"):
        ShowGates().show(trace, {})
    for part in (0.1, 0.5, 0.9):
        in_comfyui(sd, model, *inputs(sd, part=part))
    picture, numbers, latent = ShowGates().show(trace, {"samples": 1})
    assert picture.shape == (1, 420, 1200, 3) and 0 <= picture.min() < picture.max() <= 1
    assert numbers.count('"adapter": "ink"') == 3 and latent == {"samples": 1}
    with pytest.raises(FeraError, match="no FeRA adapter whose gates could be recorded"):
        RecordGates().record(sd.patcher())


# What does not fit


def test_an_adapter_of_another_model(sd, tmp_path):
    _, adapter = adapted(TWINS["sd3"](), tmp_path / "other")
    with pytest.raises(FeraError, match="trained on a SD3Transformer2DModel, and none of its .* layers is in this"):
        routed(sd.patcher(), adapter, 1.0)


def test_an_adapter_of_a_larger_model(sd, tmp_path):
    from tiny import make_unet

    larger = make_unet(block_out_channels=(32, 96), norm_num_groups=32, attention_head_dim=8)
    fera.save_adapter(fill(inject_adapter_in_model(FeraConfig(r=2), larger, "default")), tmp_path / "large")
    with pytest.raises(FeraError, match="inputs and .* outputs, and .* of this model .*different models"):
        routed(sd.patcher(), read_adapter(tmp_path / "large"), 1.0)


def test_a_layer_without_a_place(sd, tmp_path):
    from tiny import make_unet

    deeper = make_unet(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=8, layers_per_block=2)
    config = FeraConfig(r=2, target_modules=["to_q"])
    fera.save_adapter(fill(inject_adapter_in_model(config, deeper, "default")), tmp_path / "deep")
    with pytest.raises(FeraError, match="of the .* layers of deep have no place in this model"):
        routed(sd.patcher(), read_adapter(tmp_path / "deep"), 1.0)
