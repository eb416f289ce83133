"""CogVideoX."""

from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline
from models import cogvideox

from trained_cases.case import Case


def make_pipeline(**transformer: object) -> CogVideoXPipeline:
    """With the noise of its releases: velocities, and no signal at the last timestep."""
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    return CogVideoXPipeline(**cogvideox.components(**transformer) | {"scheduler": scheduler})


def make_small() -> CogVideoXPipeline:
    """As the one of 2 billion parameters: places by sums, no rotary embeddings."""
    parts = cogvideox.components(use_rotary_positional_embeddings=False, max_text_seq_length=226)
    return CogVideoXPipeline(**parts)


def make_packed() -> CogVideoXPipeline:
    """As 1.5: frames of the latent in twos."""
    return make_pipeline(patch_size_t=2, sample_frames=17)


CASES = [
    Case("cogvideox", make_pipeline, height=32, width=48, frames=9),
    Case("cogvideox-2b", make_small, height=32, width=48, frames=9),
    Case("cogvideox-1.5", make_packed, height=32, width=48, frames=9),
]
