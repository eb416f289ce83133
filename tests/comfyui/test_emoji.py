"""The emoji base drawn by ComfyUI's sampler, with a routed adapter, is what diffusers draws."""

import pytest
import torch
from comfyui_emoji import emoji
from comfyui_engine import engine
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.comfyui.adapter import read_adapter
from fera.comfyui.nodes import RecordGates
from fera.comfyui.patching import routed

pytestmark = pytest.mark.comfyui

STEPS = 8


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_that_of_diffusers(tmp_path, guidance):
    comfy = engine()
    model, pipe = emoji()
    settings = FeraConfig(r=2, router_input="log_energies+timestep", temperature=4.0)
    fill(inject_adapter_in_model(settings, pipe.unet, "default"))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.2
    fera.save_adapter(pipe, tmp_path / "style")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, STEPS + 1)
    with torch.no_grad():
        text, empty = pipe.encode_prompt(["red heart", "camera"], "cpu", 1, True)
    with fera.trace(pipe) as steps:
        expected = pipe(
            prompt_embeds=text,
            negative_prompt_embeds=empty,
            latents=noise,
            sigmas=sigmas[:-1].tolist(),
            guidance_scale=guidance,
            output_type="latent",
        ).images
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    patcher, trace = RecordGates().record(routed(patcher, read_adapter(tmp_path / "style"), 1.0))
    for _ in range(2):  # a second run begins a trace of its own
        drawn = comfy.sample.sample(
            *(patcher, noise, STEPS, guidance, "euler", "normal"),
            *([[text, {}]], [[empty, {}]]),
            torch.zeros_like(noise),
            sigmas=sigmas,
            disable_pbar=True,
        )
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
    assert len(trace) == len(steps) == STEPS
    for own, other in zip(trace, steps, strict=True):
        torch.testing.assert_close(own.gates, other.gates, rtol=0, atol=1e-4)
    assert (steps[0].gates - steps[-1].gates).abs().max() > 1e-2
