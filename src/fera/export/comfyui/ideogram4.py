"""Ideogram 4."""

from fera.export.comfyui.own import Names, Own

NAMES: dict[str, Names] = {
    "Ideogram4Transformer2DModel": {
        r"(.+\.attention)\.to_([qkv])": Own(r"\1.qkv", r"\2", "qkv"),
        r"(.+\.attention)\.to_out\.0": r"\1.o",
        "(.+)": r"\1",
    },
}
