"""Which argument of which denoiser is its latent, and how to see it as (B, C, H, W).

`registry` holds the table and reads calls; `images` and `videos` are the table's entries, one a class; `layouts` is how
the latents of a family are laid out. Nothing here knows diffusers or PEFT: classes go by their names.
"""

from fera.denoisers import images, videos
from fera.denoisers.registry import CallReader, Denoiser, find, is_known, known, register_denoiser

__all__ = ["CallReader", "Denoiser", "find", "images", "is_known", "known", "register_denoiser", "videos"]
