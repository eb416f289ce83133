"""Qwen-Image 2.1."""

from models import qwen_image21

from trained_cases.case import Case

CASES = [Case("qwen-image-2.1", qwen_image21.make_pipeline, height=64, width=96)]
