"""What ComfyUI calls the layers of text encoders in files of LoRAs."""

import re

_CLIP = "text_model."
_T5 = "encoder.block."
# Its own code of a language model has its layers at one place, wherever transformers has them.
_LANGUAGE_MODEL = re.compile(r"(?:[\w.]+\.)?(layers\.\d+\.(?:self_attn|mlp)\.\w+)")


def comfyui_name(encoder: str, path: str) -> str | None:
    """The name of a text encoder's layer in a file of a LoRA; None where ComfyUI has none.

    Of CLIP it knows diffusers' names; of others those of its own code, whichever encoder it is.

    Args:
        encoder: name of the text encoder in the pipeline.
        path: of the layer, as an adapter's files have it.
    """
    if path.startswith(_CLIP):
        return f"{encoder}.{path}"
    if path.startswith(_T5):
        return f"text_encoders.transformer.{path}"
    match = _LANGUAGE_MODEL.fullmatch(path)
    return f"text_encoders.transformer.model.{match[1]}" if match else None
