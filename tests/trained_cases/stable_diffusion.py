"""Stable Diffusion 1 and 2, SDXL, Stable Diffusion 3."""

from models.stable_diffusion import make_xl_pipeline
from tiny import make_sd3_pipeline, make_sd_pipeline

from trained_cases.case import Case

OFF = {"guidance_scale": 1.0}

CASES = [
    Case("sd", make_sd_pipeline, OFF),
    Case("sdxl", make_xl_pipeline, OFF),
    Case("sd3", make_sd3_pipeline, OFF),
]
