"""Nucleus-Image."""

from models import nucleus_image

from trained_cases.case import Case

CASES = [Case("nucleus-image", nucleus_image.make_pipeline)]
