"""AnimateDiff."""

from diffusers import AnimateDiffPipeline, DDIMScheduler
from models import animatediff

from trained_cases.case import Case


def make_pipeline() -> AnimateDiffPipeline:
    """With the noise of its releases."""
    parts = animatediff.make_animatediff().components
    return AnimateDiffPipeline(**parts | {"scheduler": DDIMScheduler(beta_schedule="linear", clip_sample=False)})


CASES = [Case("animatediff", make_pipeline, {"guidance_scale": 1.0}, frames=3)]
