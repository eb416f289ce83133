"""Prompts in, images and a grid out.

One code path for `fera generate`, for the previews of `fera train` and for `fera demo`, so that a preview is what
inference gives later.
"""

from fera.generation.clips import contact_sheet, save_clip
from fera.generation.grids import make_grid, prompt_grid
from fera.generation.sampling import file_stem, generate, generate_clips, generate_sounds, save_image
from fera.generation.sounds import save_sound

__all__ = [
    "contact_sheet",
    "file_stem",
    "generate",
    "generate_clips",
    "generate_sounds",
    "make_grid",
    "prompt_grid",
    "save_clip",
    "save_image",
    "save_sound",
]
