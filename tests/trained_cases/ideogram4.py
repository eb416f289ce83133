"""Ideogram 4."""

from models import ideogram4

from trained_cases.case import Case

CASES = [Case("ideogram4", ideogram4.make_pipeline, {"max_sequence_length": 64})]
