"""Examples of a run: checked, held out, cropped."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from fera.data.clips.reading import look_at
from fera.data.colours import NOTE
from fera.data.example import Example, Source, repeat, some_of
from fera.data.images import load_image
from fera.data.index import Known, PictureIndex, stamp_of
from fera.data.masks import load_mask
from fera.data.sounds.reading import look_at as look_at_sound
from fera.data.sources import find_examples
from fera.errors import FeraError
from fera.support.files import file_digest

__all__ = ["Example", "check_images", "crop_offset", "find_examples", "hold_out", "repeat", "some_of"]


def check_images(
    examples: Sequence[Example],
    *,
    skip_bad: bool,
    index: PictureIndex | None = None,
    clips: bool = False,
    sounds: bool = False,
) -> tuple[list[Example], list[str]]:
    """Decode every picture and mask once, so that a damaged one is named before anything else happens.

    Args:
        examples: what `find_examples` found.
        skip_bad: leave pictures that cannot be used out instead of stopping.
        index: what is known of pictures that were read before; they are not read again.
        clips: whether videos, animated pictures and folders of frames are clips. Of a video the table of its frames is
            read, and the first frame: whether it is whole, without decoding it.
        sounds: whether all are sounds, of which likewise.

    Returns:
        The usable examples with digests and `size` filled in, and a line about each one left out.

    Raises:
        FeraError: a picture cannot be used and `skip_bad` is off, or none can be used.
    """
    good, bad = sift_images(examples, index, clips=clips, sounds=sounds)
    things = "sounds" if sounds else "pictures and clips" if clips else "pictures"
    if bad and not skip_bad:
        raise FeraError(
            f"{len(bad)} of {len(examples)} {things} cannot be used: {some_of(bad)}. "
            "Repair or remove them; a training run leaves them out with data.skip_bad = true"
        )
    if not good:
        raise FeraError(f"none of {len(examples)} {things} can be used: {some_of(bad)}")
    return good, bad


def sift_images(
    examples: Sequence[Example], index: PictureIndex | None = None, *, clips: bool = False, sounds: bool = False
) -> tuple[list[Example], list[str]]:
    """As `check_images` with `skip_bad`, but all may be bad."""
    index = None if sounds else index
    known = _look_up(examples, index) if index else _Known()
    # Pillow decodes outside the interpreter's lock. What it warns of is odd EXIF data; what matters it raises.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        checked = list(pool.map(lambda example: _check(example, known, clips=clips, sounds=sounds), examples))
    good = [result for result in checked if isinstance(result, _Checked)]
    if index:
        index.note(
            {path: held for one in good for path, held in one.pictures.items() if path not in known.pictures},
            {
                one.example.mask: one.mask
                for one in good
                if one.example.mask and one.mask and one.example.mask not in known.masks
            },
            {(one.example.digest, one.mask.digest) for one in good if one.mask} - known.fits,
        )
    return [one.example for one in good], [result for result in checked if isinstance(result, str)]


def hold_out(examples: Sequence[Example], fraction: float, stage: str = "") -> tuple[list[Example], list[Example]]:
    """Split examples into training and validation, by name: another run holds out the same.

    Args:
        examples: at least two, unless `fraction` is 0.
        fraction: share to hold out, in [0, 1), of the examples of `stage`; above 0 holds out at
            least one and leaves at least one.
        stage: the stage to hold out of; all of a run without stages.

    Returns:
        Training and validation examples, each in the given order.

    Raises:
        FeraError: there are too few examples to hold one out.
    """
    if fraction == 0:
        return list(examples), []
    # A picture that comes twice, with other captions, is on one side only.
    names = {example.image: example.name_in_folder for example in reversed(examples) if example.stage == stage}
    if len(names) < 2:
        raise FeraError("data.validation_fraction needs two pictures at least: to train on, and to hold out")
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    held = set(sorted(names, key=lambda image: hashlib.sha256(names[image].encode()).digest())[:count])
    return (
        [example for example in examples if example.image not in held],
        [example for example in examples if example.image in held],
    )


def crop_offset(example: Example, *, center_crop: bool, seed: int) -> float:
    """Where to crop along the longer side, 0 (start) to 1 (end); drawn from digest and seed if off centre."""
    if center_crop:
        return 0.5
    draw = hashlib.sha256(f"{seed}:{example.digest}".encode()).digest()
    return round(int.from_bytes(draw[:4], "big") / (2**32 - 1), 4)


@dataclass(frozen=True)
class _Known:
    """What an index holds: of pictures, of masks, and which digests of both fit."""

    pictures: Mapping[Path, Known] = field(default_factory=dict)
    masks: Mapping[Path, Known] = field(default_factory=dict)
    fits: Set[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class _Checked:
    """An example that can be used, and what was read of its pictures, if it is no clip, and of its mask."""

    example: Example
    pictures: Mapping[Path, Known]
    mask: Known | None

    @property
    def picture(self) -> Known:
        """Of the example's own picture."""
        return self.pictures[self.example.image]


def _look_up(examples: Sequence[Example], index: PictureIndex) -> _Known:
    named = {example.image for example in examples} | {s.path for example in examples for s in example.sources}
    pictures = index.known(named)
    masks = index.known({example.mask for example in examples if example.mask is not None}, "mask")
    pairs = [
        (pictures[example.image].digest, masks[example.mask].digest)
        for example in examples
        if example.mask in masks and example.image in pictures
    ]
    return _Known(pictures, masks, index.fitting(pairs))


def _check(example: Example, known: _Known, *, clips: bool, sounds: bool) -> _Checked | str:
    try:
        if sounds:
            sound, digest = look_at_sound(example.image)
            return _Checked(replace(example, digest=digest, size=(1, 1), sound=sound), {}, None)
        if clips and (found := look_at(example.image)) is not None:
            clip, digest = found
            return _Checked(replace(example, digest=digest, size=clip.size, clip=clip), {}, None)
        picture = known.pictures.get(example.image) or _read_picture(example.image)
        checked = replace(example, digest=picture.digest, size=picture.size, colours=picture.colours)
        pictures = {example.image: picture} | {s.path: _read_source(s, known) for s in example.sources}
        checked = replace(checked, sources=tuple(_noted(s, pictures[s.path]) for s in example.sources))
        if checked.mask is None:
            return _Checked(checked, pictures, None)
        mask = known.masks.get(checked.mask)
        if mask is None or (picture.digest, mask.digest) not in known.fits:
            mask = _read_mask(checked)
        return _Checked(replace(checked, mask_digest=mask.digest), pictures, mask)
    except FileNotFoundError as error:  # the picture, or its mask
        return f"{error.filename or example.origin} does not exist"
    except (ValueError, OSError) as error:
        return f"{example.origin} {error}"


def _read_source(source: Source, known: _Known) -> Known:
    try:
        return known.pictures.get(source.path) or _read_picture(source.path)
    except ValueError as error:
        raise ValueError(f"has a source, {source.path}, that {error}") from error


def _noted(source: Source, picture: Known) -> Source:
    return replace(source, digest=picture.digest, size=picture.size, colours=picture.colours)


def _read_picture(path: Path) -> Known:
    stamp = stamp_of(path)  # first: a file that changes while it is read is read anew the next time
    image = load_image(path)
    return Known(stamp, file_digest(path), image.size, image.info.get(NOTE, ""))


def _read_mask(example: Example) -> Known:
    assert example.mask is not None
    stamp = stamp_of(example.mask)
    load_mask(example)
    return Known(stamp, example.digest if example.mask == example.image else file_digest(example.mask))
