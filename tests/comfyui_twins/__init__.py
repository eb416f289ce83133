"""Small models of ComfyUI's classes with the weights of diffusers', a file for each kin."""

from collections.abc import Callable

from comfyui_engine import Twin

from comfyui_twins.flux import flux, flux2
from comfyui_twins.lumina import lumina2, z_image
from comfyui_twins.qwen_image import qwen_image
from comfyui_twins.sd3 import sd3
from comfyui_twins.unets import sd15, sdxl
from comfyui_twins.wan import wan

TWINS: dict[str, Callable[[], Twin]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "qwen_image": qwen_image,
    "wan": wan,
    "z_image": z_image,
    "lumina2": lumina2,
}
