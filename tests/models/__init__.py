"""Tiny pipelines of the real classes, one case for each way in which a denoiser gets its latent.

A module here is a family; `CASES` gathers their cases. `tests/test_supported_denoisers.py` proves the same things of
each, and the table in docs/denoisers.md lists the pipelines that are proven here.
"""

from models import (
    aura_flow,
    chroma,
    cogvideox,
    cogview4,
    flux,
    flux2,
    hidream,
    hunyuan,
    hunyuan_video,
    kandinsky,
    krea2,
    ltx,
    ltx2,
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
from models.case import Case

CASES: list[Case] = [
    *stable_diffusion.CASES,
    *flux.CASES,
    *chroma.CASES,
    *aura_flow.CASES,
    *cogview4.CASES,
    *flux2.CASES,
    *hidream.CASES,
    *hunyuan.CASES,
    *kandinsky.CASES,
    *krea2.CASES,
    *lumina2.CASES,
    *pixart.CASES,
    *qwen_image.CASES,
    *sana.CASES,
    *z_image.CASES,
    *cogvideox.CASES,
    *hunyuan_video.CASES,
    *ltx.CASES,
    *ltx2.CASES,
    *stable_audio.CASES,
    *stable_cascade.CASES,
    *wan.CASES,
]
