"""Chroma."""

from models import chroma

from trained_cases.case import Case

CASES = [Case("chroma", chroma.make_pipeline)]
