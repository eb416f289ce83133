"""Colour profiles: pictures are brought to sRGB, in which bases were trained and pictures are drawn."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from fera.data.example import Example, some_of

# Where an image keeps what was done about its colours, in words.
NOTE = "colours"

# Of 255 levels. Two makers' profiles of sRGB itself differ by no more, and need no conversion.
_SAME = 1
# LittleCMS optimizes a steep curve into a table that is 10 levels off where it is dark, and gains no time by it.
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class _Profile:
    """A colour profile that was read.

    Args:
        name: as it calls itself.
        space: the space of its colours: "RGB", "GRAY" or "CMYK" are of use.
        content: its bytes.
        is_srgb: whether a conversion would change nothing.
    """

    name: str
    space: str
    content: bytes
    is_srgb: bool = False


def to_srgb(image: Image.Image, content: bytes | None) -> Image.Image:
    """Convert a picture's colours by its profile.

    Args:
        image: 8 bits a channel, any mode; its `info` loses the profile.
        content: its ICC profile; None or empty where it has none.

    Returns:
        The picture without a profile; "RGB" or "RGBA" where it was converted, else as it is. `info["colours"]` says in
        words what was done, if it was anything.
    """
    image.info.pop("icc_profile", None)  # a writer would add it to colours that are not its own any more
    if image.mode == "LAB":
        return _noted(
            _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), "converted to sRGB from CIELAB"
        )
    if not content:
        return _noted(image, "CMYK without a colour profile, taken by rule of thumb") if image.mode == "CMYK" else image
    profile = _read(content)
    if profile is None:
        return _noted(image, "a colour profile that cannot be read, taken for sRGB")
    prepared = _of_space(image, profile.space)
    if prepared is None:
        return _noted(image, f"a colour profile for other pictures ({profile.name}, {profile.space}), taken for sRGB")
    if profile.is_srgb:
        return image
    pixels, alpha = prepared
    converted = _converted(pixels, ImageCms.ImageCmsProfile(io.BytesIO(content)))
    if alpha is not None:
        converted.putalpha(alpha)
    return _noted(converted, f"converted to sRGB from {profile.name}")


def describe_colours(examples: Sequence[Example]) -> list[str]:
    """A line about each thing that was done about pictures' colours: what, how often, and to which."""
    found: dict[str, list[str]] = {}
    for example in examples:
        if example.colours:
            found.setdefault(example.colours, []).append(example.name)
    return [f"{len(names)} x {what}: {some_of(names)}" for what, names in found.items()]


@lru_cache(maxsize=16)
def _read(content: bytes) -> _Profile | None:
    """A profile; None where it is none that colours can be converted by."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(content))
        name = _CONTROL.sub(" ", opened.profile.profile_description or "").strip()[:60] or "an unnamed profile"
        profile = _Profile(name, opened.profile.xcolor_space.strip(), content)
        if profile.space not in ("RGB", "GRAY", "CMYK"):
            return profile
        probe = _probe(profile.space)
        moved = np.asarray(_converted(probe, opened), dtype=int) - np.asarray(probe.convert("RGB"), dtype=int)
        is_srgb = profile.space != "CMYK" and int(np.abs(moved).max()) <= _SAME
        return _Profile(name, profile.space, content, is_srgb)
    except (OSError, ImageCms.PyCMSError, ValueError):  # what LittleCMS says of a profile that is none
        return None


def _probe(space: str) -> Image.Image:
    """Colours from all over a space."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if space == "GRAY":
        return Image.fromarray(steps[None])
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(colours).convert("CMYK" if space == "CMYK" else "RGB")


def _of_space(image: Image.Image, space: str) -> tuple[Image.Image, Image.Image | None] | None:
    """Pixels as a profile of a space reads them, and opacity; None where the picture has colours of another space."""
    is_gray = image.mode in ("1", "L", "LA", "La")
    if space == "CMYK" or image.mode == "CMYK":
        return (image, None) if image.mode == space else None
    if space not in ("RGB", "GRAY") or (space == "GRAY" and not is_gray):
        return None
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image.convert("RGBA").convert("RGB") if alpha is not None else image.convert("RGB")
    return colours.convert("L") if space == "GRAY" else colours, alpha


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    # Of matrices and curves all intents but the absolute one make the same; of CMYK's tables this is what viewers show.
    intent, srgb = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, intent, outputMode="RGB", flags=_FLAGS)
    assert converted is not None  # as it is not done in place
    converted.info.pop("icc_profile", None)
    return converted


def _noted(image: Image.Image, note: str) -> Image.Image:
    image.info[NOTE] = note
    return image
