"""Pictures of ComfyUI's samplers, whatever they ask of the model, are those with an adapter that routes itself.

The one is ComfyUI's model with the nodes, the other a denoiser of diffusers with fera's own layers in it, in the same
sampler.
"""

import copy

import pytest
import torch
from comfyui_emoji import emoji, self_routing
from comfyui_engine import engine
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.comfyui.adapter import read_adapter
from fera.comfyui.nodes import RecordGates
from fera.comfyui.patching import routed

pytestmark = pytest.mark.comfyui

STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """ComfyUI's model, text states, diffusers' denoiser with an adapter, and the adapter."""
    model, pipe = emoji()
    settings = FeraConfig(r=2, router_input="log_energies+timestep", temperature=4.0)
    denoiser = fill(inject_adapter_in_model(settings, copy.deepcopy(pipe.unet), "default")).eval()
    for name, parameter in denoiser.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.2
    folder = tmp_path_factory.mktemp("style") / "ink"
    fera.save_adapter(denoiser, folder)
    with torch.no_grad():
        texts = pipe.encode_prompt(["red heart", "camera", "sunglasses"], "cpu", 1, True)
    return model, [*texts[0][:, None], texts[1][:1]], denoiser, read_adapter(folder)


def draw(patcher, texts, sampler="euler", steps=STEPS, guidance=3.0, count=1, positive=None, **options):
    """A latent, by ComfyUI's own `sample`."""
    heart, _, _, empty = texts
    noise = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"latent_image": torch.zeros_like(noise)} | options
    latent = options.pop("latent_image")
    conditions = positive or [[heart, {}]], [[empty, {}]]
    return engine().sample.sample(
        *(patcher, noise, steps, guidance, sampler, "normal", *conditions, latent),
        **{"disable_pbar": True, "seed": 1} | options,
    )


def both(base, prepare=lambda patcher: None, **options):
    """The latent with the nodes, and that with an adapter that routes itself; and what the nodes recorded."""
    model, texts, denoiser, adapter = base
    cpu = torch.device("cpu")
    plain = engine().model_patcher.ModelPatcher(model, cpu, cpu)
    patcher, trace = RecordGates().record(routed(plain, adapter, 1.0))
    other = self_routing(denoiser)
    drawn = []
    for one in (patcher, other, plain):
        prepare(one)
        drawn.append(draw(one, texts, **options))
    assert (drawn[0] - drawn[2]).abs().max() > 0.1, "the adapter does something"
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=2e-3)
    assert not any(module._forward_hooks for module in model.modules())
    return trace


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [("heun", 2 * STEPS - 1), ("dpmpp_sde", 2 * STEPS - 1), ("dpmpp_2m", STEPS), ("euler_ancestral", STEPS)],
)
def test_samplers(base, sampler, calls):
    """Of those that call the model several times a step, each call has a gate of its own."""
    trace = both(base, sampler=sampler)
    assert len(trace) == calls
    assert (trace[0].gates - trace[1].gates).abs().max() > 1e-4


def test_areas_masks_and_several_texts(base):
    """A part of the picture that is drawn by a text of its own is routed by that part."""
    heart, camera, glasses, _ = base[1]
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    positive = [
        [heart, {}],
        [camera, {"area": (8, 8, 4, 8), "strength": 0.8}],
        [glasses, {"mask": mask, "mask_strength": 1.0}],
    ]
    trace = both(base, positive=positive)
    assert len({tuple(one.gates.flatten().tolist()) for one in trace[:2]}) == 2


def test_parts_of_sampling(base):
    """Texts that follow each other."""
    heart, camera, _, _ = base[1]
    both(base, positive=[[heart, {"end_percent": 0.5}], [camera, {"start_percent": 0.5}]])


def test_windows(base):
    """The picture in overlapping parts, each of them routed by what is in it."""
    from comfy import context_windows as windows

    def prepare(patcher):
        patcher.model_options["context_handler"] = windows.IndexListContextHandler(
            windows.get_matching_context_schedule("standard_static"),
            windows.get_matching_fuse_method("flat"),
            context_length=8,
            context_overlap=4,
            dim=3,
        )

    trace = both(base, prepare)
    assert len(trace) == 3 * STEPS


def test_little_memory(base, monkeypatch):
    """Conditional and unconditional part in calls of their own."""
    comfy = engine()
    together = both(base)
    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *arguments, **options: 1e18)
    apart = both(base)
    assert len(apart) == 2 * len(together)
    torch.testing.assert_close(apart[0].gates, together[0].gates[:1], rtol=0, atol=1e-6)


def test_a_batch_of_pictures(base):
    trace = both(base, count=3)
    assert trace[-1].gates.shape == (6, 3)
    assert (trace[-1].gates[0] - trace[-1].gates[1]).abs().max() > 1e-3


def test_from_a_picture(base):
    """A part of the steps, from a latent that is given."""
    given = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    both(base, latent_image=given, steps=8, start_step=4)


def test_within_a_mask(base):
    """What lies outside of it is the given latent, with the step's noise."""
    given = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5)).cumsum(-1) / 4
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    both(base, latent_image=given, noise_mask=mask)
