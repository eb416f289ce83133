"""ERNIE-Image."""

from models import ernie_image

from trained_cases.case import Case

CASES = [Case("ernie-image", ernie_image.make_pipeline)]
