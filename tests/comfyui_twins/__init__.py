"""Small models of ComfyUI's classes with the weights of diffusers', a file for each kin."""

from collections.abc import Callable

from comfyui_engine import Twin

from comfyui_twins.aura_flow import aura_flow
from comfyui_twins.chroma import chroma
from comfyui_twins.cogvideox import cogvideox, cogvideox15
from comfyui_twins.flux import fill, flux, flux2, flux2_edit, kontext
from comfyui_twins.flux_kin import longcat_image, ovis_image
from comfyui_twins.hunyuan import hunyuan_image, hunyuan_video, hunyuan_video15
from comfyui_twins.hunyuan_dit import hunyuan_dit
from comfyui_twins.ideogram4 import ideogram4
from comfyui_twins.kandinsky import kandinsky5, kandinsky5_video
from comfyui_twins.kept_names import ernie_image, hidream
from comfyui_twins.krea2 import krea2
from comfyui_twins.ltx import ltx, ltx2
from comfyui_twins.lumina import lumina2, z_image, z_image_omni
from comfyui_twins.mochi import mochi
from comfyui_twins.pixart import pixart
from comfyui_twins.qwen_image import qwen_image, qwen_image_edit
from comfyui_twins.sd3 import sd3
from comfyui_twins.sounds import ace_step, stable_audio, stable_audio3
from comfyui_twins.stable_video import stable_video
from comfyui_twins.unets import sd2, sd15, sdxl
from comfyui_twins.wan import skyreels, wan, wan22_5b, wan_image_to_video, wan_vace

TWINS: dict[str, Callable[[], Twin]] = {
    "ace_step": ace_step,
    "aura_flow": aura_flow,
    "chroma": chroma,
    "cogvideox": cogvideox,
    "cogvideox15": cogvideox15,
    "ernie_image": ernie_image,
    "fill": fill,
    "flux": flux,
    "flux2": flux2,
    "flux2_edit": flux2_edit,
    "hidream": hidream,
    "hunyuan_dit": hunyuan_dit,
    "hunyuan_image": hunyuan_image,
    "hunyuan_video": hunyuan_video,
    "hunyuan_video15": hunyuan_video15,
    "ideogram4": ideogram4,
    "kandinsky5": kandinsky5,
    "kandinsky5_video": kandinsky5_video,
    "kontext": kontext,
    "krea2": krea2,
    "longcat_image": longcat_image,
    "ltx": ltx,
    "ltx2": ltx2,
    "lumina2": lumina2,
    "mochi": mochi,
    "ovis_image": ovis_image,
    "pixart": pixart,
    "qwen_image": qwen_image,
    "qwen_image_edit": qwen_image_edit,
    "sd2": sd2,
    "sd15": sd15,
    "sd3": sd3,
    "sdxl": sdxl,
    "skyreels": skyreels,
    "stable_audio": stable_audio,
    "stable_audio3": stable_audio3,
    "stable_video": stable_video,
    "wan": wan,
    "wan22_5b": wan22_5b,
    "wan_image_to_video": wan_image_to_video,
    "wan_vace": wan_vace,
    "z_image": z_image,
    "z_image_omni": z_image_omni,
}
