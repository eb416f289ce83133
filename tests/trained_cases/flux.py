"""FLUX.1."""

from diffusers import FluxPipeline
from models import flux

from trained_cases.case import Case


def make_dev() -> FluxPipeline:
    """Told a guidance, as dev is."""
    return flux.make_pipeline(guidance_embeds=True)


CASES = [Case("flux", flux.make_pipeline), Case("flux-dev", make_dev, {"guidance_scale": 1.0})]
