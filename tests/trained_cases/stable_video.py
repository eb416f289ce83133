"""Stable Video Diffusion."""

from models import stable_video

from trained_cases.case import Case

CASES = [Case("svd", stable_video.make_pipeline, height=32, width=48, frames=3, given=1)]
