"""Calls of one denoiser in ComfyUI and in diffusers, with the same weights (`comfyui_engine`)."""

import torch
from comfyui_engine import engine

from fera.comfyui.latent import noise_level_of


def inputs(twin, batch=2, part=0.4, seed=0):
    """Latents that differ in how their energy is spread, sigmas, and text."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *twin.latent, generator=generator)
    x[0] = x[0].cumsum(-1).cumsum(-2) / 4
    sigma = float(twin.model.model_sampling.percent_to_sigma(part))
    return x, torch.full((batch,), sigma), torch.randn(batch, *twin.context, generator=generator)


@torch.no_grad()
def in_comfyui(twin, patcher, x, sigma, context, options=None, **conditions):
    """A call of the model as ComfyUI's samplers make it, with what else it is told."""
    frames = x.shape[1] if twin.has_frames_as_rows else 1
    if twin.has_frames_as_rows:
        x, sigma, context = x.flatten(0, 1), *(told.repeat_interleave(frames, dim=0) for told in (sigma, context))
    extra = {
        key: value.expand(len(x), *value.shape[1:]).contiguous() if torch.is_tensor(value) else value
        for key, value in twin.extra.items()
    }
    options = {"wrappers": patcher.wrappers} | (options or {})
    given, shapes = x, None
    if twin.sound is not None:
        given, shapes = engine().utils.pack_latents([x, twin.sound.expand(len(x), -1, -1, -1)])
        conditions["latent_shapes"] = shapes
    told = {"c_crossattn": context, "transformer_options": options}
    drawn = patcher.model.apply_model(given, sigma, **told, **extra, **conditions)
    if twin.has_frames_as_rows:
        return drawn.unflatten(0, (-1, frames))
    return drawn if shapes is None else engine().utils.unpack_latents(drawn, shapes)[0]


@torch.no_grad()
def in_diffusers(twin, denoiser, x, sigma, context):
    sampling = twin.model.model_sampling
    level = noise_level_of(sampling, sigma, type(twin.denoiser).__name__)
    prediction = twin.predict(denoiser, sampling.calculate_input(sigma, x), level, context)
    return sampling.calculate_denoised(sigma, prediction, x)
