"""Sana-Video."""

from typing import Any

from diffusers import SanaImageToVideoPipeline, SanaVideoPipeline
from models import sana_video
from tiny import make_t5
from tiny_texts import make_gemma2

from trained_cases import wan
from trained_cases.case import Case


def make_pipeline(pipeline: Any = SanaVideoPipeline) -> Any:
    """For 4-channel latents by Wan's autoencoder, each channel with statistics of its own."""
    texts = {"tokenizer": make_t5()[1], "text_encoder": make_gemma2()}
    parts = sana_video.components(in_channels=4, out_channels=4, caption_channels=32)
    return pipeline(**parts | texts | {"vae": wan.make_pipeline().vae})


def make_image_to_video() -> SanaImageToVideoPipeline:
    """The given frame is the latent's first one."""
    return make_pipeline(SanaImageToVideoPipeline)


CASES = [
    Case("sana-video", make_pipeline, height=32, width=64, frames=9),
    Case("sana-video-i2v", make_image_to_video, height=32, width=64, frames=9, given=1, variant=True),
]
