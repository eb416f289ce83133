"""PixArt-α and PixArt-Σ."""

from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline
from models import pixart
from tiny import make_t5, make_vae

from trained_cases.case import Case

CALL = {"guidance_scale": 1.0, "use_resolution_binning": False}


def make_sigma() -> PixArtSigmaPipeline:
    """Its transformer is told nothing of sizes."""
    text_encoder, tokenizer = make_t5()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        transformer=pixart.make_transformer(),
        scheduler=DPMSolverMultistepScheduler(),
    )


CASES = [Case("pixart-alpha", pixart.make_pipeline, CALL), Case("pixart-sigma", make_sigma, CALL)]
