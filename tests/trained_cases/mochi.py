"""Mochi."""

from models import mochi

from trained_cases.case import Case

CASES = [Case("mochi", mochi.make_pipeline, height=32, width=48, frames=13)]
