"""LTX-Video and LTX-2, which differ from diffusers in the layers before the blocks."""

from fera.export.comfyui.own import Names

_LTX: Names = {
    "(audio_)?proj_in": r"\1patchify_proj",
    r"(audio_)?time_embed\.(.+)": r"\1adaln_single.\2",
    r"(audio_)?prompt_adaln\.(.+)": r"\1prompt_adaln_single.\2",
    r"av_cross_attn_(video|audio)_scale_shift\.(.+)": r"av_ca_\1_scale_shift_adaln_single.\2",
    r"av_cross_attn_(?:video|audio)_(a2v|v2a)_gate\.(.+)": r"av_ca_\1_gate_adaln_single.\2",
    "(.+)": r"\1",
}

NAMES: dict[str, Names] = {"LTXVideoTransformer3DModel": _LTX, "LTX2VideoTransformer3DModel": _LTX}
