"""The models that fera knows, one file a family: where the latent is in a call, and how training calls the denoiser.

`registry` holds the table of denoisers and `reading` reads their calls; `families` holds what training knows;
`layouts` says how latents are laid out. README.md here says what a new family brings. Classes go by their names:
nothing here imports diffusers or PEFT.
"""

# Importing a family's file puts it into the tables.
from fera.models import (  # noqa: F401
    allegro,
    animatediff,
    anyflow,
    aura_flow,
    bria,
    bria_fibo,
    bria_fibo2,
    chroma,
    chronoedit,
    cogvideox,
    cogview3,
    cogview4,
    consisid,
    cosmos,
    dit,
    dreamlite,
    easyanimate,
    ernie_image,
    flux,
    flux2,
    flux3,
    glm_image,
    helios,
    hidream,
    hunyuan_dit,
    hunyuan_image,
    hunyuan_video,
    hunyuan_video15,
    ideogram4,
    joyimage,
    kandinsky3,
    kandinsky5,
    kandinsky6,
    kolors,
    krea2,
    latte,
    longcat_image,
    ltx,
    lumina,
    lumina2,
    mochi,
    motif_video,
    nucleus_image,
    omnigen,
    ovis_image,
    pixart,
    prx,
    qwen_image,
    qwen_image21,
    sana,
    sana_video,
    skyreels,
    sound,
    stable_audio,
    stable_cascade,
    stable_diffusion,
    stable_video,
    unet2d,
    wan,
    z_image,
)
from fera.models.reading import CallReader
from fera.models.registry import Denoiser, find, is_known, known, register_denoiser

__all__ = ["CallReader", "Denoiser", "find", "is_known", "known", "register_denoiser"]
