"""FIBO 2."""

from models import bria_fibo2

from trained_cases.case import Case

CASES = [Case("bria-fibo-2", bria_fibo2.make_pipeline)]
