"""Sana."""

from diffusers import DPMSolverMultistepScheduler, SanaPipeline
from models import sana
from tiny import make_t5
from tiny_texts import make_gemma2

from trained_cases.case import Case


def make_pipeline() -> SanaPipeline:
    """With the scheduler of its releases."""
    return SanaPipeline(
        tokenizer=make_t5()[1],
        text_encoder=make_gemma2(),
        vae=sana.make_vae(),
        transformer=sana.make_transformer(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


# It takes multiples of 32 pixels alone.
CASES = [
    Case("sana", make_pipeline, {"guidance_scale": 1.0, "use_resolution_binning": False}, height=32, width=64),
]
