"""Latents of training are those that pipelines decode; bases that cannot be trained are refused."""

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from family_cases import FAMILY_CASES
from listeners import train
from training_cases import run_config

import fera
from fera.cli.main import main
from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.families import family_of
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


def test_latents_are_what_the_pipeline_decodes_to_the_picture(case):
    """A pipeline that is handed the latents that training has, as what it has drawn, decodes those of its autoencoder.

    The autoencoder has a shift, means and deviations in its configuration, whether its pipeline reads them or not.
    """
    pipe, call = case
    height, width = call.get("height", HEIGHT), call.get("width", WIDTH)
    channels = next(iter(denoisers(pipe).values())).config.in_channels // family_of(pipe).packing ** 2
    numbers = [0.5 + 0.25 * channel for channel in range(channels)]
    pipe.vae.register_to_config(shift_factor=0.3, latents_mean=numbers, latents_std=[2 * number for number in numbers])
    encoded = family_of(pipe).encode_pictures(
        pipe.vae, torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    )
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
