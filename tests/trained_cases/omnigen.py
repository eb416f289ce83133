"""OmniGen."""

from models import omnigen

from trained_cases.case import Case

CASES = [Case("omnigen", omnigen.make_pipeline, height=32, width=64)]
