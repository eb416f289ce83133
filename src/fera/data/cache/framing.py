"""How pictures are brought to their sizes: where they are cropped, and whether they are there mirrored too."""

from collections.abc import Sequence
from dataclasses import dataclass

from fera.data.buckets import Size
from fera.data.checking import Example, crop_offset
from fera.data.example import Source
from fera.models.families import Family
from fera.models.placement import place


@dataclass(frozen=True)
class Framing:
    """What the configuration says of crops and flips.

    Args:
        center_crop: as in the configuration.
        random_flip: as in the configuration.
        seed: the seed of crops off centre.
    """

    center_crop: bool
    random_flip: bool
    seed: int

    @property
    def mirrorings(self) -> tuple[bool, ...]:
        """Whether a picture is mirrored, for each way in which it is encoded."""
        return (False, True) if self.random_flip else (False,)

    def offset(self, example: Example) -> float:
        """Where an example and its sources are cropped, as `crop_offset` has it."""
        return crop_offset(example, center_crop=self.center_crop, seed=self.seed)


def source_size(family: Family, example: Example, source: Source, size: Size) -> Size:
    """The size that a source is brought to."""
    own = family.pairs.size if family.pairs is not None else None
    return size if own is None else own(source.size, example.size, size)


def placed_conditions(
    family: Family, framing: Framing, examples: Sequence[Example], sizes: Sequence[Size]
) -> list[list[dict[str, tuple[float, ...]]]]:
    """What a denoiser is told of where pictures lie in their files, as `EncodedSet.placed` has it."""
    placed = family.placed
    if placed is None:
        return []
    return [
        [
            placed(place(example.size, size, framing.offset(example), mirrored=mirrored))
            for mirrored in framing.mirrorings
        ]
        for example, size in zip(examples, sizes, strict=True)
    ]
