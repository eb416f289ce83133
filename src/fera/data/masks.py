"""Masks: where in a picture the loss counts. White counts, black does not.

A mask is a greyscale picture of the same name in `data.mask_path`, or with `data.alpha_mask` the picture's own opacity.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fera.config import DataConfig
from fera.data.example import Example, some_of
from fera.data.images import load_alpha, load_gray
from fera.data.picture_formats import IMAGE_SUFFIXES
from fera.data.sources.files import check_inside
from fera.errors import FeraError

# A mask scaled with rounded sides is still the mask of its picture.
_ASPECT_TOLERANCE = 0.02


def add_masks(examples: Sequence[Example], config: DataConfig) -> list[Example]:
    """Find the mask of each example.

    Args:
        examples: as found.
        config: where masks are.

    Raises:
        FeraError: there is no folder of masks, or a picture has none in it.
    """
    if config.alpha_mask:
        return [replace(example, mask=example.image) for example in examples]
    folder = config.mask_path
    if folder is None:
        return list(examples)
    if not folder.is_dir():
        raise FeraError(f"data.mask_path {folder} is no folder (looked from {Path.cwd()})")
    masked = [replace(example, mask=_mask_of(example, folder, config)) for example in examples]
    if without := [example.name for example in masked if example.mask is None]:
        raise FeraError(
            f"{len(without)} of {len(masked)} pictures have no mask of their name in {folder}: {some_of(without)}. "
            "Add masks; an all-white one trains the whole picture"
        )
    return masked


def describe_shared_masks(examples: Sequence[Example]) -> list[str]:
    """A line about each mask that several pictures share.

    Args:
        examples: with their masks; a picture that comes twice is one.
    """
    users: dict[Path, dict[Path, str]] = {}
    for example in examples:
        if example.mask is not None and example.mask != example.image:
            users.setdefault(example.mask, {})[example.image] = example.name
    return [
        f"{mask} is the mask of {len(names)} pictures: {some_of(list(names.values()))}"
        for mask, names in users.items()
        if len(names) > 1
    ]


def load_mask(example: Example) -> Image.Image | None:
    """The mask of an example, mode "L"; None where all of the picture counts.

    Raises:
        ValueError: it cannot be read, has another aspect than the picture, or is black. The message names the mask.
    """
    if example.mask is None:
        return None
    if example.mask == example.image:
        mask = load_alpha(example.image)
        if mask is not None and mask.getextrema() == (0, 0):
            raise ValueError("is wholly transparent: with data.alpha_mask there is nothing to learn from it")
        return mask
    try:
        mask = load_gray(example.mask)
    except ValueError as error:
        raise ValueError(f"has a mask, {example.mask}, that {error}") from error
    if mask.getextrema() == (0, 0):
        raise ValueError(f"has a mask, {example.mask}, that is black: there is nothing to learn from it")
    stretch = mask.width * example.size[1] / (mask.height * example.size[0])
    if not 1 / (1 + _ASPECT_TOLERANCE) <= stretch <= 1 + _ASPECT_TOLERANCE:
        sizes = f"{mask.width} x {mask.height}, the picture {example.size[0]} x {example.size[1]}"
        raise ValueError(f"has a mask, {example.mask}, of another shape ({sizes})")
    return mask


def _mask_of(example: Example, folder: Path, config: DataConfig) -> Path | None:
    """The file in the folder of masks that is called like the picture, whatever its format."""
    beside = folder / Path(example.name)
    for suffix in (example.image.suffix, ".png", *sorted(IMAGE_SUFFIXES)):
        path = beside.with_suffix(suffix)
        if path.is_file():
            return check_inside(path, folder, follow_symlinks=config.follow_symlinks)
    return None
