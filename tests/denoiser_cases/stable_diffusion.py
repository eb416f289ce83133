"""Stable Diffusion's UNet, and SD 3's transformer."""

from conftest import make_sd3_pipeline, make_sd_pipeline

from denoiser_cases.case import Case

CALL = {"prompt": "a red rocket", "num_inference_steps": 3, "height": 16, "width": 24, "output_type": "latent"}

CASES = [
    Case(
        "sd",
        make_sd_pipeline,
        CALL,
        {"prompt": "a green tree"},
        component="unet",
        doubled=True,
    ),
    Case("sd3", make_sd3_pipeline, CALL, {"prompt": "a green tree"}, doubled=True),
]
