"""Every family's latents and noise, against its own pipeline: what it decodes, what its scheduler steps through."""

import inspect
import math

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDPMScheduler,
)
from trained_calls import (
    CAPTION,
    Recorder,
    at,
    direction,
    draw,
    encoded_sound,
    noise_levels,
    pictures,
    told,
)

from fera.models import find, layouts_video
from fera.models.components import denoisers
from fera.models.families import family_of, latent_scale, native_resolution, size_multiple
from fera.models.noise import noise_process

pytest_plugins = ("trained_calls",)


@torch.no_grad()
def test_a_picture_becomes_the_latent_that_the_pipeline_decodes_to_it(pipe, case):
    pixels = pictures(case)
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    latent = family.clean_latents(pipe.vae, pixels)
    with Recorder(pipe) as seen:
        family.predict(denoiser, latent, at(pipe, 0.5), told(pipe, case, [CAPTION]))
    # As the scheduler has it: as training passes it to the denoiser, there maybe behind the tokens of a text.
    given = seen.arguments()[find(denoiser).latent]
    if not torch.is_tensor(given):  # a picture each, behind its references
        given = torch.stack([entry[-1] if isinstance(entry, list) else entry for entry in given]).squeeze(2)

    def final(sample):
        if case.sources:  # in further channels or tokens
            return given[:, : sample.shape[1], ..., : sample.shape[-1]]
        if case.seconds:
            return given
        if case.given and given.ndim == 3:  # tokens, of which the scheduler has those that are drawn
            return given.unflatten(1, (-1, *sample.shape[3:])).movedim(-1, 1)[:, :, -sample.shape[2] :]
        if case.given and find(denoiser).view is layouts_video.frames_first:
            return given[:, :, : sample.shape[2]]
        if case.given:
            return given[:, : sample.shape[1], -sample.shape[2] :]
        if case.frames:  # channels of what is given follow, first or last
            return given[:, : sample.shape[1], ..., : sample.shape[-1]]
        return (given[:, -sample.shape[1] :] if sample.ndim == 3 else given).reshape(sample.shape)

    with Recorder(pipe, replace=final) as seen:
        drawn = draw(pipe, case, output_type="pt")
    if pipe.vae.config.get("in_channels") == 4 and pipe.vae.config.get("out_channels") == 4:  # opaque
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    if case.seconds:
        torch.testing.assert_close(seen.decoded[0], encoded_sound(pipe, pixels), rtol=1e-4, atol=1e-5)
        return
    if pixels.ndim == 5 and seen.decoded[0].ndim == 4:  # frames, each a picture
        pixels = pixels.transpose(1, 2).flatten(0, 1)
    output = pipe.vae.encode(pixels if seen.decoded[0].ndim == pixels.ndim else pixels[:, :, None])
    mean = output.latent_dist.mean if hasattr(output, "latent_dist") else output.latent
    if case.given and latent[0].numel() < mean[0].numel():  # the first frame is a picture, encoded by itself
        picture = pipe.vae.encode(pixels[:, :, :1])
        mean = torch.cat([picture.latent_dist.mean, mean[:, :, 1:]], dim=2)
    torch.testing.assert_close(seen.decoded[0], mean, rtol=1e-4, atol=1e-5)
    counted = "num_frames" in inspect.signature(type(pipe.vae).decode).parameters
    decoded = pipe.vae.decode(mean, return_dict=False, **{"num_frames": len(mean)} if counted else {})[0]
    decoded = decoded.transpose(1, 2) if decoded.ndim == 5 and case.frames else decoded.reshape(drawn.shape)
    torch.testing.assert_close(torch.as_tensor(drawn), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_noise_process_is_the_schedulers(pipe, case):
    """Flow matching: steps of the scheduler that get the target for a prediction lead to the picture."""
    process, scheduler = noise_process(pipe.scheduler), pipe.scheduler
    latent = family_of(pipe).clean_latents(pipe.vae, pictures(case))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    with Recorder(pipe) as seen:
        draw(pipe, case)
    level = seen.levels[0]
    if process.sigmas is not None:
        check_edm(process, scheduler, latent, noise)
        return
    if process.is_angle:  # a noisier sample than data: the denoiser gets it scaled down
        sigma = seen.sigmas[0]
        noisy = scheduler.precondition_inputs(latent + sigma * noise, sigma)
        torch.testing.assert_close(process.add_noise(latent, noise, level), noisy, rtol=1e-4, atol=1e-4)
        target = process.target(latent, noise, level)
        clean = scheduler.precondition_outputs(latent + sigma * noise, target, sigma)
        torch.testing.assert_close(clean, latent, rtol=1e-3, atol=2e-4 * float(sigma))
        return
    if not process.is_flow:
        level = level.long()
        if not isinstance(scheduler, CogVideoXDDIMScheduler):  # which changes what its settings say
            scheduler = DDPMScheduler.from_config(scheduler.config)  # others scale what they noise
        expected = scheduler.add_noise(latent, noise, level)
        torch.testing.assert_close(process.add_noise(latent, noise, level), expected, rtol=1e-5, atol=1e-5)
        velocity = process.prediction_type == "v_prediction"
        expected = scheduler.get_velocity(latent, noise, level) if velocity else noise
        torch.testing.assert_close(process.target(latent, noise, level), expected, rtol=1e-5, atol=1e-5)
        return
    level = noise_levels(scheduler)[:1]  # the timestep may be rounded
    sample = process.add_noise(latent, noise, level)
    target = process.target(latent, noise, level)
    scheduler.set_begin_index(0)
    scheduler._step_index = None
    for timestep in scheduler.timesteps:
        sample = scheduler.step(direction(scheduler) * target, timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, latent, rtol=1e-4, atol=1e-4)


def check_edm(process, scheduler, latent, noise):
    """Steps of the scheduler, which scales what the denoiser gets."""
    scheduler.set_timesteps(3)
    sample = latent + scheduler.sigmas[0] * noise
    for timestep in scheduler.timesteps:
        level = timestep.reshape(1)
        expected = scheduler.scale_model_input(sample, timestep)
        torch.testing.assert_close(process.add_noise(latent, noise, level), expected, rtol=1e-4, atol=1e-4)
        sample = scheduler.step(process.target(latent, noise, level), timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, latent, rtol=1e-4, atol=1e-4)
    ends = torch.tensor([math.log(sigma) / 4 for sigma in (700.0, 0.002)])
    torch.testing.assert_close(process.timesteps(torch.tensor([0.0, 1.0])), ends, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(process.noise_levels(ends), torch.tensor([1.0, 0.0]), rtol=1e-4, atol=1e-4)


def first_latent(pipe, case):
    """As the pipeline's denoiser is given it."""
    with Recorder(pipe) as seen:
        draw(pipe, case)
    return seen.arguments()[find(seen.denoiser).latent]


def test_sizes(pipe, case):
    latent = family_of(pipe).clean_latents(pipe.vae, pictures(case))
    if sound := family_of(pipe).sound:
        channels = find(pipe.transformer).view(pipe.transformer, first_latent(pipe, case), {}).shape
        assert latent.dtype == torch.float32 and latent.shape == channels
        assert latent.shape[2] == sound.frames(case.seconds)
        return
    side = latent_scale(pipe)
    assert latent.dtype == torch.float32
    assert latent.shape[2:] == (case.height // side, case.width // side)
    assert native_resolution(pipe) % size_multiple(pipe) == 0
    assert case.height % size_multiple(pipe) == case.width % size_multiple(pipe) == 0
