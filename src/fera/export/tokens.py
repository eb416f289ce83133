"""A learned token as other tools read it."""

from torch import Tensor

from fera.adapters.text.files import TextFiles, token_file

# What ComfyUI and the web interfaces call the encoders in a file that holds the vectors of both.
_BOTH = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def token_files(text: TextFiles | None, format: str) -> dict[str, dict[str, Tensor]]:
    """Files of an adapter's token, by name; none where it has none.

    One text encoder has a file with the word as its only key, which all tools read. Of two, diffusers reads a file
    each; others read one for both.

    Args:
        text: the adapter's text parts.
        format: the format of the export.
    """
    if text is None or text.token is None:
        return {}
    rows = {encoder: text.rows(encoder) for encoder in text.vectors}
    if format != "diffusers" and rows.keys() == _BOTH.keys():
        return {token_file("text_encoder"): {_BOTH[encoder]: held for encoder, held in rows.items()}}
    return {token_file(encoder): {text.token: held} for encoder, held in rows.items()}
