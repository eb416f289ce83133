"""The models that fera knows, one file a family: where the latent is in a call, and how training calls the denoiser.

`registry` holds the table of denoisers and `reading` reads their calls; `families` holds what training knows;
`layouts` says how latents are laid out. README.md here says what a new family brings. Classes go by their names:
nothing here imports diffusers or PEFT.
"""

from fera.models import (
    aura_flow,
    chroma,
    cogvideox,
    cogview,
    flux,
    flux2,
    hidream,
    hunyuan,
    hunyuan_video,
    krea2,
    ltx,
    lumina2,
    pixart,
    qwen_image,
    sana,
    stable_audio,
    stable_cascade,
    stable_diffusion,
    wan,
    z_image,
)
from fera.models.reading import CallReader
from fera.models.registry import Denoiser, find, is_known, known, register_denoiser

# Importing a family's file puts it into the tables.
FAMILY_FILES = (
    aura_flow,
    chroma,
    cogvideox,
    cogview,
    flux,
    flux2,
    hidream,
    hunyuan,
    hunyuan_video,
    krea2,
    ltx,
    lumina2,
    pixart,
    qwen_image,
    sana,
    stable_audio,
    stable_cascade,
    stable_diffusion,
    wan,
    z_image,
)

__all__ = ["FAMILY_FILES", "CallReader", "Denoiser", "find", "is_known", "known", "register_denoiser"]
