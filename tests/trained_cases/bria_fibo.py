"""FIBO."""

from models import bria_fibo

from trained_cases.case import Case

CASES = [Case("bria-fibo", bria_fibo.make_pipeline, height=64, width=96)]
