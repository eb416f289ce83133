"""Models whose layers ComfyUI calls as diffusers does, or nearly."""

from fera.export.comfyui.own import Names

_ALL: Names = {"(.+)": r"\1"}

NAMES: dict[str, Names] = {
    "ErnieImageTransformer2DModel": _ALL,
    "HiDreamImageTransformer2DModel": _ALL,
    "Kandinsky5Transformer3DModel": _ALL,
    "QwenImageTransformer2DModel": _ALL,
    "ZImageTransformer2DModel": _ALL,
}
