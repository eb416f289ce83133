"""Stable Diffusion 1 and 2, SDXL, Stable Diffusion 3."""

from models import stable_diffusion
from models.inputs import certain
from models.stable_diffusion import make_xl_pipeline
from tiny import make_sd3_pipeline, make_sd_pipeline

from trained_cases.case import Case

OFF = {"guidance_scale": 1.0}


def make_inpaint_pipeline():
    """Its pictures are encoded as a draw from what the autoencoder says; here that is certain."""
    pipe = stable_diffusion.make_inpaint_pipeline()
    certain(pipe.vae)
    return pipe


def make_xl_inpaint_pipeline():
    """Likewise."""
    pipe = stable_diffusion.make_xl_inpaint_pipeline()
    certain(pipe.vae)
    return pipe


CASES = [
    Case("sd", make_sd_pipeline, OFF),
    Case("sdxl", make_xl_pipeline, OFF),
    Case("sd3", make_sd3_pipeline, OFF),
    Case("sd-inpaint", make_inpaint_pipeline, OFF, sources=((24, 16),), is_filled=True),
    Case("sdxl-inpaint", make_xl_inpaint_pipeline, OFF, sources=((24, 16),), is_filled=True),
    Case("sdxl-instruct-pix2pix", stable_diffusion.make_xl_edit_pipeline, OFF, sources=((24, 16),)),
    Case("instruct-pix2pix", stable_diffusion.make_edit_pipeline, OFF, sources=((24, 16),)),
]
