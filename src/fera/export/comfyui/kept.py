"""Models whose layers ComfyUI calls as diffusers does, or nearly."""

from fera.export.comfyui.own import Names, Own

_ALL: Names = {"(.+)": r"\1"}

NAMES: dict[str, Names] = {
    "ErnieImageTransformer2DModel": _ALL,
    "HiDreamImageTransformer2DModel": _ALL,
    "Kandinsky5Transformer3DModel": _ALL,
    "QwenImageTransformer2DModel": _ALL,
    # Of what it sees with SigLIP; of the other blocks ComfyUI's own map knows diffusers' names.
    "ZImageTransformer2DModel": {
        r"(siglip_refiner\.\d+\.attention)\.to_([qkv])": Own(r"\1.qkv", r"\2", "qkv"),
        r"(siglip_refiner\.\d+\.attention)\.to_out\.0": r"\1.out",
        **_ALL,
    },
}
