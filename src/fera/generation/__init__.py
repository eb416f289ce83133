"""Prompts in, images and a grid out.

One code path for `fera generate`, for the previews of `fera train` and for `fera demo`, so that a preview is what
inference gives later.
"""

from fera.generation.grids import make_grid, prompt_grid
from fera.generation.sampling import file_stem, generate, save_image

__all__ = ["file_stem", "generate", "make_grid", "prompt_grid", "save_image"]
