"""CogVideoX."""

from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline, CogVideoXPipeline
from models import cogvideox
from models.inputs import certain

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


def make_image_to_video(**transformer: object) -> CogVideoXImageToVideoPipeline:
    """Channels of the given frame behind the latent's. Its autoencoder is all but certain of it."""
    parts = make_pipeline(in_channels=8, **transformer).components
    certain(parts["vae"])
    return CogVideoXImageToVideoPipeline(**parts)


def make_packed_image_to_video() -> CogVideoXImageToVideoPipeline:
    """As 1.5: frames of the latent in twos, told a number of its own, and the given frame's latent over its factor."""
    pipe = make_image_to_video(patch_size_t=2, sample_frames=17, ofs_embed_dim=2)
    pipe.vae.register_to_config(invert_scale_latents=True)
    return pipe


CASES = [
    Case("cogvideox", make_pipeline, height=32, width=48, frames=9),
    Case("cogvideox-2b", make_small, height=32, width=48, frames=9, variant=True),
    Case("cogvideox-1.5", make_packed, height=32, width=48, frames=9, variant=True),
    Case("cogvideox-i2v", make_image_to_video, height=32, width=48, frames=9, given=1),
    Case("cogvideox-1.5-i2v", make_packed_image_to_video, height=32, width=48, frames=9, given=1, variant=True),
]
