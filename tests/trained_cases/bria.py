"""Bria."""

from models import bria

from trained_cases.case import Case

CASES = [Case("bria", bria.make_pipeline, height=32, width=48)]
