"""FLUX.1."""

from diffusers import FluxPipeline
from models import flux
from models.inputs import certain

from trained_cases.case import Case


def make_dev() -> FluxPipeline:
    """Told a guidance, as dev is."""
    return flux.make_pipeline(guidance_embeds=True)


def make_fill():
    """Its pictures are encoded as a draw from what the autoencoder says; here that is certain."""
    pipe = flux.make_fill_pipeline()
    certain(pipe.vae)
    return pipe


def make_control():
    """Likewise."""
    pipe = flux.make_control_pipeline()
    certain(pipe.vae)
    return pipe


CASES = [
    Case("flux", flux.make_pipeline),
    Case("flux-dev", make_dev, {"guidance_scale": 1.0}, variant=True),
    Case("flux-kontext", flux.make_kontext_pipeline, sources=((24, 16),)),
    Case("flux-kontext-other-shape", flux.make_kontext_pipeline, sources=((48, 48),), variant=True),
    Case("flux-control", make_control, sources=((24, 16),)),
    Case("flux-fill", make_fill, sources=((24, 16),), is_filled=True),
]
