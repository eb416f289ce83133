"""What users switch on in a pipeline leaves its calls routed: other passes, schedulers, offloading, callbacks."""

from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, draw, make_pipeline, write_adapter
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    T2IAdapter,
)
from models.recorded import recorded_latents
from PIL import Image
from pipeline_calls import call
from tiny import make_unet
from torch import nn

import fera
from fera.models import is_known
from fera.models.components import denoisers
from fera.tuner import FrequencyGate

BANDS = fera.FrequencyBands()


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8))


def mask():
    left = np.zeros((16, 16), dtype=np.uint8)
    left[:, :8] = 255
    return Image.fromarray(left)


def awake(model):
    """Without the zeros that let a control net start as no control at all."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def as_class(pipeline_class, **components):
    """A tiny Stable Diffusion in another of its pipelines, with an adapter whose every weight counts."""
    parts = {name: part for name, part in make_pipeline("sd").components.items() if name != "image_encoder"}
    pipe = pipeline_class(**parts | components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return add_adapter(pipe)


def control_net():
    # One step of downsampling, as the tiny autoencoder has.
    control = ControlNetModel.from_unet(make_unet(), conditioning_embedding_out_channels=(16, 32))
    return as_class(StableDiffusionControlNetPipeline, controlnet=awake(control))


def t2i_adapter():
    # Attention first, as in the UNets that such adapters are made for: they add their features before it goes down.
    unet = make_unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    torch.manual_seed(4)
    adapter = T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)
    return as_class(StableDiffusionAdapterPipeline, unet=unet, adapter=awake(adapter))


# Name to a pipeline, the arguments of its call, and the same with other conditions.
PASSES = {
    "text to image": (lambda: add_adapter(make_pipeline("sd")), {}, {"prompt": PROMPTS[1]}),
    "ControlNet": (control_net, {"image": picture()}, {"image": picture(1)}),
    "T2I-Adapter": (t2i_adapter, {"image": picture()}, {"image": picture(1)}),
    "image to image": (
        lambda: as_class(StableDiffusionImg2ImgPipeline),
        {"image": picture(), "strength": 0.75},
        {"prompt": PROMPTS[1]},
    ),
    "inpainting": (
        lambda: as_class(StableDiffusionInpaintPipeline),
        {"image": picture(), "mask_image": mask(), "height": 16, "width": 16},
        {"prompt": PROMPTS[1]},
    ),
    "inpainting with its own UNet": (
        lambda: as_class(StableDiffusionInpaintPipeline, unet=make_unet(in_channels=9)),
        {"image": picture(), "mask_image": mask(), "height": 16, "width": 16},
        {"image": picture(1)},
    ),
}
passes = pytest.mark.parametrize("name", PASSES)


def check_routed(steps, latents, repeats=2):
    """One entry a step, with the indicator of that step's latent; guidance repeats the latent."""
    assert len(steps) == len(latents) > 0
    for routing, latent in zip(steps, latents, strict=True):
        expected = BANDS.indicator(latent.float()).repeat(repeats, 1)
        torch.testing.assert_close(routing.indicator, expected, rtol=1e-4, atol=1e-5)


@contextmanager
def without_adapter(pipe):
    fera.set_adapters(pipe, [])
    yield
    fera.set_adapters(pipe, "default")


# Other passes


@passes
def test_every_step_is_routed_by_its_latent(name):
    make, arguments, _ = PASSES[name]
    pipe = make()
    steps, latents, result = call(pipe, **arguments)
    check_routed(steps, latents)
    assert len(steps) == (3 if name == "image to image" else 4)
    with without_adapter(pipe), recorded_latents(pipe):
        settings = {"prompt": PROMPTS[0], "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
        base = pipe(**settings | arguments, generator=torch.Generator().manual_seed(0)).images
    assert not torch.allclose(result, base)


@passes
def test_conditions_do_not_steer_the_first_gate(name):
    make, arguments, others = PASSES[name]
    pipe = make()
    steps, _, result = call(pipe, **arguments)
    changed, _, other_result = call(pipe, **arguments | others)
    assert torch.equal(steps[0].gates, changed[0].gates)
    assert not torch.allclose(result, other_result)


def test_a_control_net_is_no_denoiser(tmp_path):
    pipe = control_net()
    assert list(denoisers(pipe)) == ["unet"]
    fera.unload(pipe)
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink"))
    assert not any(isinstance(module, FrequencyGate) for module in pipe.controlnet.modules())
    assert not pipe.controlnet._forward_pre_hooks
    check_routed(*call(pipe, image=picture())[:2])


def test_no_control_net_of_diffusers_is_taken_for_a_denoiser():
    controls = [getattr(diffusers, name) for name in dir(diffusers) if "ControlNet" in name or "Adapter" in name]
    controls = [control for control in controls if isinstance(control, type) and issubclass(control, nn.Module)]
    assert len(controls) >= 5
    assert not [control for control in controls if is_known(control.__new__(control))]


# Schedulers


def test_lcm():
    pipe = add_adapter(make_pipeline("sd"))
    pipe.scheduler = LCMScheduler(num_train_timesteps=1000)
    steps, latents, _ = call(pipe, guidance_scale=1.0)
    check_routed(steps, latents, repeats=1)
    assert len(steps) == 4


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_one_step_without_guidance_as_turbo_models_draw(guidance):
    pipe = add_adapter(make_pipeline("sd"))
    pipe.scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    steps, latents, _ = call(pipe, guidance_scale=guidance, num_inference_steps=1)
    check_routed(steps, latents, repeats=1)
    assert len(steps) == 1


def test_several_images_of_a_prompt_have_a_gate_each():
    steps, latents, _ = call(add_adapter(make_pipeline("sd")), num_images_per_prompt=2)
    check_routed(steps, latents)
    assert steps[0].gates.shape == (4, 3) and not torch.equal(*steps[0].gates[:2])


# Offloading


OFFLOADING = {
    "model": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),
    "sequential": lambda pipe, device: pipe.enable_sequential_cpu_offload(device=device),
    "group": lambda pipe, device: pipe.enable_group_offload(torch.device(device), offload_type="leaf_level"),
}
# accelerate cannot offload to the CPU layer by layer when the CPU is also where it runs.
offloading = pytest.mark.parametrize(
    ("kind", "device"),
    [("model", "cpu"), ("group", "cpu"), *(pytest.param(kind, "cuda", marks=pytest.mark.gpu) for kind in OFFLOADING)],
)


@pytest.mark.usefixtures("exact_convolutions")
@offloading
@pytest.mark.parametrize("pipeline", ["sd", "sd3"])
def test_an_offloaded_pipeline_draws_the_same(kind, device, pipeline):
    pipe = add_adapter(make_pipeline(pipeline))
    expected = draw(pipe, guidance=3.0)
    OFFLOADING[kind](pipe, device)
    with fera.trace(pipe) as steps, recorded_latents(pipe) as latents:
        drawn = draw(pipe, guidance=3.0)
    check_routed(steps, [latent.cpu() for latent in latents])
    torch.testing.assert_close(drawn.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact_convolutions")
@offloading
def test_an_adapter_loaded_into_an_offloaded_pipeline(kind, device, tmp_path):
    ink = write_adapter("sd", tmp_path / "ink", seed=1)
    pipe = make_pipeline("sd")
    base = draw(pipe)
    fera.load_adapter(pipe, ink)
    expected = draw(pipe)
    fera.unload(pipe)
    OFFLOADING[kind](pipe, device)
    draw(pipe)  # so that models have been moved once
    fera.load_adapter(pipe, ink)
    torch.testing.assert_close(draw(pipe).cpu(), expected, rtol=1e-4, atol=1e-5)
    fera.unload(pipe)
    torch.testing.assert_close(draw(pipe).cpu(), base, rtol=1e-4, atol=1e-5)


def test_layers_join_sequential_offloading_and_leave_it(tmp_path):
    ink = write_adapter("sd", tmp_path / "ink", seed=1)
    pipe = make_pipeline("sd")
    base = draw(pipe)
    fera.load_adapter(pipe, ink)
    expected = draw(pipe)
    fera.unload(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    fera.load_adapter(pipe, ink)
    routed = [p for name, p in pipe.unet.named_parameters() if ".lora_" in name or "fera.router." in name]
    assert routed and all(parameter.is_meta for parameter in routed), "their weights are with the hooks"
    pipe.remove_all_hooks()
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    pipe.enable_sequential_cpu_offload(device="cpu")
    fera.unload(pipe)
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())
    pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), base)


def test_layers_join_group_offloading(tmp_path):
    pipe = make_pipeline("sd")
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink"))
    layers = [module for name, module in pipe.unet.named_modules() if name.endswith((".lora_A.default", ".hidden"))]
    assert len(layers) > 1 and all(hasattr(layer, "_diffusers_hook") for layer in layers)


# Switches of a pipeline


SWITCHES = {
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "VAE slicing": lambda pipe: pipe.vae.enable_slicing(),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "fused projections": lambda pipe: pipe.fuse_qkv_projections(unet=False),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_leave_a_pipeline_routed(switch):
    pipe = add_adapter(make_pipeline("sd"))
    _, _, before = call(pipe)
    SWITCHES[switch](pipe)
    steps, latents, after = call(pipe)
    check_routed(steps, latents)
    assert len(steps) == 4
    if switch == "FreeU":
        assert not torch.allclose(after, before)
    else:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


# Callbacks


def test_a_callback_that_changes_the_latents_steers_the_next_gate():
    pipe = add_adapter(make_pipeline("sd"))

    def smooth(pipe, index, timestep, values):
        return {"latents": values["latents"].mean(dim=(2, 3), keepdim=True).expand_as(values["latents"]).contiguous()}

    steps, latents, _ = call(pipe, callback_on_step_end=smooth, num_inference_steps=3)
    check_routed(steps, latents)
    assert steps[0].indicator[0, 0] < 0.9
    for routing in steps[1:]:
        torch.testing.assert_close(routing.indicator, torch.tensor([[1.0, 0.0, 0.0]] * 2), atol=1e-5, rtol=0)


def test_a_callback_that_switches_the_adapter_off_and_on():
    pipe = add_adapter(make_pipeline("sd"))
    timesteps = []

    def alternate(pipe, index, timestep, values):
        timesteps.append(float(timestep))
        fera.set_adapters(pipe, [] if index % 2 == 0 else "default")
        return {}

    steps, latents, _ = call(pipe, callback_on_step_end=alternate)
    assert [float(routing.timestep) for routing in steps] == timesteps[::2]
    check_routed(steps, latents[::2])


@pytest.mark.parametrize("switch", ["fera", "diffusers"])
def test_switched_off_in_the_middle_of_a_run(switch, tmp_path):
    """The first steps are those of the adapter, the others those of the base from there on."""
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink"))
    off = {"fera": lambda: fera.set_adapters(pipe, []), "diffusers": pipe.unet.disable_adapters}[switch]
    on = {"fera": lambda: fera.set_adapters(pipe, "default"), "diffusers": pipe.unet.enable_adapters}[switch]
    predictions = []
    hook = pipe.unet.register_forward_hook(
        lambda module, args, kwargs, output: predictions.append((args, kwargs, output[0])), with_kwargs=True
    )

    def callback(pipe, index, timestep, values):
        if index == 1:
            off()
        return {}

    steps, _, _ = call(pipe, callback_on_step_end=callback)
    hook.remove()
    assert len(steps) == 2 and len(predictions) == 4
    base = make_pipeline("sd").unet
    with torch.no_grad():
        equal = [torch.equal(base(*args, **kwargs)[0], output) for args, kwargs, output in predictions]
    assert equal == [False, False, True, True]
    on()
    assert len(call(pipe)[0]) == 4


def test_weighed_anew_in_the_middle_of_a_run():
    pipe = add_adapter(add_adapter(make_pipeline("sd"), "ink", seed=1), "neon", seed=2)
    fera.set_adapters(pipe, ["ink", "neon"], [1.0, 0.0])

    def fade(pipe, index, timestep, values):
        share = (index + 1) / 3
        fera.set_adapters(pipe, ["ink", "neon"], [1 - share, share])
        return {}

    steps, latents, faded = call(pipe, callback_on_step_end=fade)
    for name in ("ink", "neon"):
        check_routed([routing for routing in steps if routing.adapter == name], latents)
    fera.set_adapters(pipe, ["ink", "neon"], [1.0, 0.0])
    assert not torch.allclose(faded, call(pipe)[2])
