"""How many of the channels that go into a denoiser are the latent's own."""

from typing import Any

from torch import nn

# Where neither the number in nor the number out is the latent's: Stable Diffusion's latent upscaler gets the latent and
# that of the small picture, and gives one channel that is not used.
_ODD = {(8, 5): 4}

# Embeddings by which UNets of Kandinsky are known, whose output holds a variance.
_KANDINSKY = ("image", "image_hint", "text_image")


def count_channels(denoiser: nn.Module) -> int:
    """The latent's channels: those of conditions follow them and only go in, those of a variance only come out."""
    config: Any = denoiser.config
    into = config.in_channels
    out = getattr(config, "out_channels", None) or into
    kind = getattr(config, "addition_embed_type", None)
    if (into, out) in _ODD:
        return _ODD[into, out]
    if into == out:
        # DeepFloyd's upscaler gets the picture and the smaller one, and gives as many with the variance. It is told how
        # noisy the smaller one is, by which it is known: other UNets pool their captions too.
        is_upscaler = kind == "text" and getattr(config, "class_embed_type", None) == "timestep"
        return into // 2 if is_upscaler else into
    has_variance = out % 2 == 0 and (out > into or kind in _KANDINSKY)
    return min(into, out // 2 if has_variance else out)
