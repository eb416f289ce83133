"""LongCat-Image."""

from models import longcat_image

from trained_cases.case import Case

CASES = [Case("longcat-image", longcat_image.make_pipeline, height=16, width=24)]
