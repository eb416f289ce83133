"""Which format the users of a tool need, for each base."""

import re

from fera.errors import FeraError
from fera.export import kohya, text_encoders
from fera.export.formats import FORMATS
from fera.export.static import StaticLora

# The tools by the name that people know them by. Each reads one of several formats, by the base.
TOOLS = ("comfyui", "kohya", "diffusers", "forge", "invokeai", "sdcpp")
_OWN = ("comfyui", "kohya", "diffusers")
# Bases whose LoRAs the others read under kohya's names.
_BY_KOHYA = {
    "forge": (kohya.UNET,),
    "invokeai": (kohya.UNET,),
    "sdcpp": (kohya.UNET, kohya.FLUX),
}
# And those that they read under diffusers'.
_BY_DIFFUSERS = {
    "forge": (kohya.FLUX,),
    "invokeai": (
        *(kohya.FLUX, "Flux2Transformer2DModel", "QwenImageTransformer2DModel", "WanTransformer3DModel"),
        *("ZImageTransformer2DModel", "Krea2Transformer2DModel"),
    ),
    "sdcpp": ("SD3Transformer2DModel",),
}


# Layers that a tool passes over in a UNet's file, as it was seen to do.
_LEFT_OUT = {
    "kohya": re.compile(r"conv_in|conv_out|time_embedding\..*|add_embedding\..*"),
    "sdcpp": re.compile(r"conv_in|conv_out|time_embedding\..*|add_embedding\..*"),
}


def format_for(tool: str, lora: StaticLora) -> str:
    """The format that a tool reads a LoRA in.

    Args:
        tool: one of `TOOLS`.
        lora: the LoRA.

    Returns:
        A key of `FORMATS`.

    Raises:
        FeraError: there is no such tool, it is not known to read LoRAs of this base, or it would leave out a part.
    """
    if tool not in TOOLS:
        raise FeraError(f"unknown tool {tool!r}; there are: {', '.join(TOOLS)}")
    if lora.denoiser == kohya.UNET and tool in _LEFT_OUT:
        if passed := [layer for layer in lora.layers if _LEFT_OUT[tool].fullmatch(layer)]:
            raise FeraError(
                f"{tool} leaves out layers of the adapter without a word, so that it would draw something else: "
                f'{", ".join(passed[:3])}. Name the format ("kohya") in place of the tool if that is meant'
            )
    if tool in _OWN:
        return tool
    if others := text_encoders.in_folders(lora):
        raise FeraError(f"{tool} is not known to read LoRA of {', '.join(others)}: take comfyui or diffusers")
    if lora.denoiser in _BY_KOHYA[tool]:
        return "kohya"
    if lora.denoiser in _BY_DIFFUSERS[tool]:
        return "diffusers"
    raise FeraError(
        f"{tool} is not known to read LoRAs of a {lora.denoiser}. If it does, name the format: "
        f"{', '.join(name for name, entry in FORMATS.items() if entry.refuses(lora) is None) or 'none holds this one'}"
    )
