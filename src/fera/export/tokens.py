"""A learned token as other tools read it."""

from torch import Tensor

from fera.adapters.text.files import TextFiles, token_file
from fera.export import kohya
from fera.export.static import StaticLora

# What ComfyUI and the web interfaces call the encoders in a file that holds the vectors of several, by denoiser.
_TOGETHER: dict[str | None, dict[str, str]] = {
    kohya.UNET: {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "SD3Transformer2DModel": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    kohya.FLUX: {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "HunyuanVideoTransformer3DModel": {"text_encoder": "llama", "text_encoder_2": "clip_l"},
    "HiDreamImageTransformer2DModel": {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        "text_encoder_3": "t5xxl",
        "text_encoder_4": "llama",
    },
}


def token_files(text: TextFiles | None, format: str, lora: StaticLora) -> dict[str, dict[str, Tensor]]:
    """Files of an adapter's token, by name; none where it has none.

    One text encoder has a file with the word as its only key, which all tools read. Of several, diffusers reads a file
    each; others read one for all.

    Args:
        text: the adapter's text parts.
        format: the format of the export.
        lora: its plain LoRA.
    """
    if text is None or text.token is None:
        return {}
    rows = {encoder: text.rows(encoder) for encoder in text.vectors}
    names = _TOGETHER.get(lora.denoiser, {})
    if format != "diffusers" and len(rows) > 1 and rows.keys() <= names.keys():
        return {token_file("text_encoder"): {names[encoder]: held for encoder, held in rows.items()}}
    return {token_file(encoder): {text.token: held} for encoder, held in rows.items()}
