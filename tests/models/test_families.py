"""Training calls a denoiser as its pipeline does, and trains every family from a folder to pictures."""

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from family_cases import FAMILY_CASES
from listeners import train
from training_cases import log_of, run_config

import fera
from fera.cli.main import main
from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.families import FAMILIES, encode_pictures, family_of, native_resolution, size_multiple
from fera.pipelines.base import load_base
from fera.training import to_toml

HEIGHT, WIDTH = 16, 24


@pytest.fixture(params=FAMILY_CASES)
def case(request):
    make, call = FAMILY_CASES[request.param]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


def recorded(pipe, call):
    """Latents, timesteps as the scheduler has them, and outputs of the denoiser, step by step."""
    call = {"height": HEIGHT, "width": WIDTH, **call}
    denoiser = next(iter(denoisers(pipe).values()))
    step, latents, timesteps, outputs = pipe.scheduler.step, [], [], []

    def record(model_output, timestep, sample, *args, **kwargs):
        timesteps.append(torch.as_tensor(timestep).reshape(1))
        return step(model_output, timestep, sample, *args, **kwargs)

    reader = fera.models.CallReader(denoiser)
    before = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: latents.append(reader.latent(module, args, kwargs).clone()), with_kwargs=True
    )
    after = denoiser.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
    pipe.scheduler.step = record
    try:
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 2, "output_type": "latent"}
        pipe("a red rocket", generator=generator, **settings, **call)
    finally:
        del pipe.scheduler.step
        before.remove()
        after.remove()
    return latents, timesteps, outputs


def test_a_prediction_is_what_the_pipeline_gets_of_its_denoiser(case):
    pipe, call = case
    denoiser = next(iter(denoisers(pipe).values()))
    latents, timesteps, outputs = recorded(pipe, call)
    family = family_of(pipe)
    assert len(outputs) == 2
    with torch.no_grad():
        conditions = family.encode(pipe, ["a red rocket"], torch.device("cpu"))
        for latent, timestep, output in zip(latents, timesteps, outputs, strict=True):
            prediction = family.predict(denoiser, latent, timestep.to(latent.device), conditions)
            assert prediction.shape == latent.shape
            if output.ndim == 3:
                output = pipe._unpack_latents(output, HEIGHT, WIDTH, pipe.vae_scale_factor)
            torch.testing.assert_close(prediction, output[:, : latent.shape[1]], rtol=1e-4, atol=1e-5)


def test_captions_of_a_batch_do_not_mix(case):
    pipe, _ = case
    family, device = family_of(pipe), torch.device("cpu")
    with torch.no_grad():
        both = family.encode(pipe, ["a red rocket", "a green tree"], device)
        alone = family.encode(pipe, ["a green tree"], device)
    for name, value in both.items():
        torch.testing.assert_close(value[1:], alone[name], rtol=1e-4, atol=1e-5)


def test_every_family_trains_and_draws(case, image_folder, tmp_path):
    pipe, call = case
    pipe.save_pretrained(tmp_path / "base")
    side = call.get("height", 16)
    config = run_config(
        tmp_path / "base",
        image_folder,
        tmp_path / "run",
        data={"resolution": side},
        train={"steps": 2, "consistency_weight": 0.1},
        adapter={"r": 2},
    )
    train(config)
    assert len(log_of(config, "loss")) == 2
    adapted = load_base(str(tmp_path / "base"))
    adapted.set_progress_bar_config(disable=True)
    fera.load_adapter(adapted, tmp_path / "run")
    with fera.trace(adapted) as steps:
        adapted("a red rocket", num_inference_steps=2, output_type="latent", **call | {"height": side, "width": side})
    assert len(steps) == 2
    assert all(0 <= float(gate) <= 1 for gate in steps[0].gates.flatten())


def test_sizes(case):
    pipe, _ = case
    vae_side = pipe.vae_scale_factor
    assert native_resolution(pipe) % vae_side == 0
    assert size_multiple(pipe) % vae_side == 0
    pixels = torch.zeros(1, 3, 4 * size_multiple(pipe), 4 * size_multiple(pipe))
    with torch.no_grad():
        latents = encode_pictures(pipe.vae, pixels)
    assert latents.shape[2:] == (pixels.shape[2] // vae_side, pixels.shape[3] // vae_side)


def test_latents_are_what_the_pipeline_decodes_to_the_picture(case):
    """A pipeline that is handed the latents that training has, as what it has drawn, decodes those of its autoencoder.

    The autoencoder has a shift, means and deviations in its configuration, whether its pipeline reads them or not.
    """
    pipe, call = case
    height, width = call.get("height", HEIGHT), call.get("width", WIDTH)
    channels = next(iter(denoisers(pipe).values())).config.in_channels // family_of(pipe).packing ** 2
    numbers = [0.5 + 0.25 * channel for channel in range(channels)]
    pipe.vae.register_to_config(shift_factor=0.3, latents_mean=numbers, latents_std=[2 * number for number in numbers])
    encoded = encode_pictures(pipe.vae, torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    latents = family_of(pipe).units(pipe.vae).of(encoded).detach()
    handed = pipe._pack_latents(latents, *latents.shape) if hasattr(pipe, "_pack_latents") else latents
    decoded = []
    decode = pipe.vae.decode
    pipe.scheduler.step = lambda *args, **kwargs: (handed,)
    pipe.vae.decode = lambda latents, *args, **kwargs: (decoded.append(latents), decode(latents, *args, **kwargs))[1]
    pipe("a red rocket", num_inference_steps=2, output_type="pt", **call | {"height": height, "width": width})
    torch.testing.assert_close(decoded[-1], encoded.detach(), rtol=1e-5, atol=1e-6)


def test_a_base_of_edm_is_refused_before_work(image_folder, tmp_path, capsys):
    pipe = FAMILY_CASES["sdxl"][0]()
    pipe.scheduler = EDMDPMSolverMultistepScheduler()
    pipe.save_pretrained(tmp_path / "base")
    config = run_config(tmp_path / "base", image_folder, tmp_path / "run")
    with pytest.raises(FeraError, match="EDMDPMSolverMultistepScheduler"):
        train(config)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert main(["data", "check", str(tmp_path / "config.toml")]) == 2
    assert "EDMDPMSolverMultistepScheduler" in capsys.readouterr().out


def test_every_family_has_a_case():
    assert {type(make()).__name__ for make, _ in FAMILY_CASES.values()} == set(FAMILIES)


def test_other_pipelines_are_refused_by_name():
    with pytest.raises(FeraError, match="cannot train a int yet; it can train: FluxPipeline, .*StableDiffusionXL"):
        family_of(3)
