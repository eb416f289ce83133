"""CogView 3 Plus."""

from models import cogview3

from trained_cases.case import Case

CASES = [Case("cogview3-plus", cogview3.make_pipeline, height=16, width=32)]
