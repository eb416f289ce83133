"""Ovis-Image."""

from models import ovis_image

from trained_cases.case import Case

CASES = [Case("ovis-image", ovis_image.make_pipeline, height=16, width=24)]
