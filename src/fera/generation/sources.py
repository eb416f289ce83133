"""Source pictures and masks of prompts, for pipelines that edit or fill."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fera.data.clips.reading import CLIP_SUFFIXES, end_frame
from fera.data.images import load_gray, load_image
from fera.data.tensors import to_image, to_tensor, to_weights
from fera.errors import FeraError
from fera.models.families import pairs_of
from fera.models.pairs import Pairs, Size

# Between the paths of several pictures of one prompt.
SEPARATOR = "|"


def read_sources(entries: Sequence[str], count: int) -> list[list[Image.Image]]:
    """Source pictures of prompts.

    Args:
        entries: one a prompt, or one for all of them; a path, or several with "|" between them. Of a clip, the first
            path stands for its first frame, and any other for its last one.
        count: how many prompts there are.

    Returns:
        For each prompt its pictures, RGB; nothing where there are no entries.

    Raises:
        FeraError: there are not as many entries as prompts, or a picture cannot be read.
    """
    pictures = [
        [_read(path, partial(_picture, last=place > 0)) for place, path in enumerate(entry.split(SEPARATOR))]
        for entry in entries
    ]
    return _for_each(pictures, count, "sources")


def in_turn(entries: Sequence[str], count: int) -> list[str]:
    """As many entries as there are prompts, from the first one on and then from it again; none where there are none."""
    return [entries[number % len(entries)] for number in range(count)] if entries else []


def read_masks(paths: Sequence[str], count: int) -> list[Image.Image]:
    """Masks of prompts, mode "L"; the arguments are as of `read_sources`, with one path an entry.

    Raises:
        FeraError: as there.
    """
    return _for_each([_read(path, load_gray) for path in paths], count, "masks")


def check_sources(pipe: Any, sources: Sequence[int], masks: int) -> Pairs | None:
    """Hold what prompts are given against what a pipeline takes.

    Args:
        pipe: the pipeline.
        sources: how many source pictures each prompt has; empty where none has any.
        masks: how many masks there are.

    Returns:
        How the pipeline is given them; None where it takes none, and is given none.

    Raises:
        FeraError: it takes others.
    """
    pairs, name = pairs_of(pipe), type(pipe).__name__
    if pairs is None:
        if sources or masks:
            raise FeraError(f"a {name} takes no `sources` and `masks`: leave them out")
        return None
    counts = sources or [0]
    if not all(pairs.least <= count <= pairs.most for count in counts):
        wants = f"{pairs.least}" if pairs.least == pairs.most else f"{pairs.least} to {pairs.most}"
        raise FeraError(
            f"a {name} draws from {wants} source pictures a prompt, and got {max(counts) or 'none'}: set `sources`"
        )
    if pairs.hole and not masks:
        raise FeraError(f"a {name} is told what to paint by a mask, white where it is to paint: give `masks`")
    if masks and not pairs.hole:
        raise FeraError(f"a {name} takes no `masks`: leave them out")
    return pairs if sources else None


def brought_to(size: Size, picture: Image.Image, pairs: Pairs) -> Image.Image:
    """A source or a mask as training has it for a picture of that size: scaled until it covers its own, cropped."""
    if picture.mode == "L":
        weights = to_weights(picture, size, size)[0]
        return Image.fromarray((weights * 255).round().to(torch.uint8).numpy())
    own = size if pairs.size is None else pairs.size(picture.size, size, size)
    return to_image(to_tensor(picture, own))


def _picture(path: Path, *, last: bool) -> Image.Image:
    """A picture, or a frame of a clip."""
    frame = end_frame(path, last=last) if path.is_dir() or path.suffix.lower() in CLIP_SUFFIXES else None
    return load_image(path) if frame is None else frame


def _read(path: str, load: Any) -> Image.Image:
    try:
        image: Image.Image = load(Path(path))
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FeraError(f"source picture {path} {reason}") from error
    return image


def _for_each(entries: list[Any], count: int, name: str) -> list[Any]:
    if len(entries) == 1:
        return entries * count
    if entries and len(entries) != count:
        raise FeraError(f"`{name}` has {len(entries)} entries for {count} prompts: give one a prompt, or one for all")
    return entries
