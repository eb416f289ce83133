"""HunyuanVideo."""

from diffusers import HunyuanVideoPipeline
from models import hunyuan_video

from trained_cases.case import Case


def make_pipeline() -> HunyuanVideoPipeline:
    """Told a guidance, as its releases."""
    parts = hunyuan_video.make_pipeline().components
    return HunyuanVideoPipeline(**parts | {"transformer": hunyuan_video.make_transformer(guidance_embeds=True)})


CASES = [Case("hunyuan-video", make_pipeline, height=32, width=48, frames=9)]
