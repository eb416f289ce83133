"""A schedule of `fera export` in ComfyUI: at each noise level the LoRA that was made for it, as if it were alone."""

import copy
import json

import pytest
import torch
from comfyui_cases import in_comfyui, in_diffusers, inputs
from comfyui_emoji import emoji
from comfyui_engine import engine
from comfyui_twins import TWINS
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.comfyui.patching import scheduled
from fera.comfyui.schedule import bounds_of, read_schedule
from fera.export.writing import export_lora
from fera.traces.gates import GateTrace

pytestmark = pytest.mark.comfyui

# Uneven: 6 steps, of which the first three are far apart.
LEVELS = [1.0, 0.8, 0.55, 0.5, 0.45, 0.4]
GATES = [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.6, 0.2], [0.0, 0.2, 0.8], [0.0, 0.0, 1.0]]
# Denoisers' own timesteps of a noise level.
TIMESTEPS = {
    "sd15": lambda level: 1000 * level,
    "flux": lambda level: level,
    "lumina2": lambda level: 1 - level,
}


def exported(twin, folder, timestep, **options):
    """A copy of diffusers' denoiser with an adapter, and the schedule of three LoRAs that it became."""
    denoiser = inject_adapter_in_model(FeraConfig(r=2), copy.deepcopy(twin.denoiser), "default")
    fera.save_adapter(fill(denoiser).eval(), folder / "style")
    trace = GateTrace([timestep(level) for level in LEVELS], torch.tensor(GATES))
    export_lora(folder / "style", folder / "out", trace, schedule=3, **({"tool": "comfyui"} | options))
    return denoiser, folder / "out" / "schedule.json"


@pytest.mark.parametrize("name", TIMESTEPS)
def test_each_lora_acts_where_it_was_made_for(name, tmp_path):
    twin = TWINS[name]()
    denoiser, path = exported(twin, tmp_path, TIMESTEPS[name])
    model, _ = scheduled(twin.patcher(), None, path, 1.0, 1.0)
    sampling = twin.model.model_sampling
    merged = []
    for part in range(3):
        gate = torch.tensor(GATES[2 * part : 2 * part + 2]).mean(dim=0).tolist()
        merged.append(copy.deepcopy(denoiser))
        fera.merge(merged[-1], gate=gate)
    for level, part in [*zip(LEVELS, (0, 0, 1, 1, 2, 2), strict=True), (0.69, 0), (0.66, 1), (0.47, 2), (0.01, 2)]:
        x, sigma, context = inputs(twin)
        # Of flow sigma is the noise level; of others ComfyUI knows the sigma of a timestep.
        given = level if name != "sd15" else float(sampling.sigma(torch.tensor(min(1000 * level, 999.0))))
        call = (x, torch.full_like(sigma, given), context)
        drawn = in_comfyui(twin, model, *call)
        # The less noise, the less a prediction moves the latent: what is off is held against what sets the LoRAs apart.
        away = [float((drawn - in_diffusers(twin, one, *call)).abs().max()) for one in merged]
        assert away[part] < 0.01 * min(away[:part] + away[part + 1 :]), (level, away)
    assert not any(module._forward_hooks for module in twin.model.modules())


def test_a_picture_is_drawn_with_the_weights_that_the_steps_ask_for(tmp_path):
    """By ComfyUI's sampler, in other steps than the trace had."""
    comfy = engine()
    model, pipe = emoji()
    denoiser = inject_adapter_in_model(FeraConfig(r=1), copy.deepcopy(pipe.unet), "default")
    fera.save_adapter(fill(denoiser).eval(), tmp_path / "style")
    trace = GateTrace([1000 * level for level in LEVELS], torch.tensor(GATES))
    export_lora(tmp_path / "style", tmp_path / "out", trace, schedule=2, tool="comfyui")
    path = tmp_path / "out" / "schedule.json"
    (bound, _) = bounds_of(read_schedule(path))
    assert bound == pytest.approx((LEVELS[2] + LEVELS[3]) / 2)
    merged = [copy.deepcopy(denoiser) for _ in range(2)]
    for one, gates in zip(merged, (GATES[:3], GATES[3:]), strict=True):
        fera.merge(one, gate=torch.tensor(gates).mean(dim=0).tolist())
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, 11)
    expected = noise
    with torch.no_grad():
        text, _ = pipe.encode_prompt(["red heart"], "cpu", 1, False)
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            answer = merged[int(now <= bound)](expected, now * 1000, text).sample
            expected = expected + (then - now) * answer
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    patcher, _ = scheduled(patcher, None, path, 1.0, 1.0)
    drawn = comfy.sample.sample(
        *(patcher, noise, 10, 1.0, "euler", "normal", [[text, {}]], [[text, {}]], torch.zeros_like(noise)),
        sigmas=sigmas,
        disable_pbar=True,
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_a_format_that_comfyui_does_not_read(tmp_path):
    twin = TWINS["sd15"]()
    _, path = exported(twin, tmp_path, TIMESTEPS["sd15"], tool="diffusers")
    with pytest.raises(FeraError, match="have no place in this model, .*--for comfyui"):
        scheduled(twin.patcher(), None, path, 1.0, 1.0)


def test_strength(tmp_path):
    twin = TWINS["sd15"]()
    _, path = exported(twin, tmp_path, TIMESTEPS["sd15"])
    call = inputs(twin)
    plain = in_comfyui(twin, twin.patcher(), *call)
    assert torch.equal(in_comfyui(twin, scheduled(twin.patcher(), None, path, 0.0, 1.0)[0], *call), plain)
    full = in_comfyui(twin, scheduled(twin.patcher(), None, path, 1.0, 1.0)[0], *call)
    less = in_comfyui(twin, scheduled(twin.patcher(), None, path, 1e-3, 1.0)[0], *call)
    assert 0 < (less - plain).abs().max() < 0.02 * (full - plain).abs().max()
    with pytest.raises(FeraError, match="strength must be a finite number"):
        scheduled(twin.patcher(), None, path, 1.0, float("inf"))


def test_damaged_files(tmp_path):
    twin = TWINS["sd15"]()
    _, path = exported(twin, tmp_path, TIMESTEPS["sd15"])
    whole = path.read_text("utf-8")

    def fails(text, message):
        path.write_text(text, "utf-8")
        with pytest.raises(FeraError, match=message):
            scheduled(twin.patcher(), None, path, 1.0, 1.0)

    fails("{", "is no schedule")
    fails('{"loras": 3}', "is no schedule")
    fails(whole.replace("lora-1.safetensors", "../lora-1.safetensors"), "lie in its own folder")
    fails(whole.replace("lora-3.safetensors", "lora-4.safetensors"), "lora-4.safetensors cannot be read")
    content = json.loads(whole)
    fails(json.dumps(content | {"loras": content["loras"][::-1]}), "do not follow each other")
    for lora in content["loras"]:
        del lora["noise_levels"]
    fails(json.dumps(content), "has no noise levels: write it again")
    path.write_text(whole, "utf-8")
    (path.parent / "lora-2.safetensors").write_bytes((path.parent / "lora-2.safetensors").read_bytes()[:5000])
    with pytest.raises(FeraError, match="lora-2.safetensors cannot be read"):
        scheduled(twin.patcher(), None, path, 1.0, 1.0)


def test_of_another_model(tmp_path):
    _, path = exported(TWINS["flux"](), tmp_path, TIMESTEPS["flux"])
    with pytest.raises(FeraError, match="have no place in this model"):
        scheduled(TWINS["sd15"]().patcher(), None, path, 1.0, 1.0)
