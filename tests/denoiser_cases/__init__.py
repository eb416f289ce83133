"""Tiny pipelines of the real classes, one case for each way in which a denoiser gets its latent.

A module here is a family; `CASES` gathers their cases. `tests/test_supported_denoisers.py` proves the same things of
each, and the table in docs/denoisers.md lists the pipelines that are proven here.
"""

from denoiser_cases import flux, stable_diffusion
from denoiser_cases.case import Case

CASES: list[Case] = [*stable_diffusion.CASES, *flux.CASES]
