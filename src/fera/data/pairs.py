"""Source pictures of examples: what is edited, what is filled, or what a caption refers to.

They lie in folders of `data.source_path`, called like the pictures, a folder for each source; or a column of metadata
or of a dataset has them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fera.config import DataConfig
from fera.data.example import Example, Source, some_of
from fera.data.picture_formats import IMAGE_SUFFIXES
from fera.data.sources.files import check_inside
from fera.errors import FeraError
from fera.models.families import Family
from fera.models.pairs import same_shape


def add_sources(examples: Sequence[Example], config: DataConfig) -> list[Example]:
    """Find the sources of each example in folders; where there are none, what its row named stays.

    Args:
        examples: as found.
        config: where sources are.

    Raises:
        FeraError: there is no such folder, or a picture has no source in one.
    """
    if not config.source_path:
        return list(examples)
    folders = [Path(folder) for folder in config.source_path]
    for folder in folders:
        if not folder.is_dir():
            raise FeraError(f"data.source_path {folder} is no folder (looked from {Path.cwd()})")
        if without := [example.name for example in examples if _beside(example, folder, config) is None]:
            raise FeraError(
                f"{len(without)} of {len(examples)} pictures have no source of their name in {folder}: "
                f"{some_of(without)}. Add their sources, or take these pictures out"
            )
    return [
        replace(
            example,
            sources=tuple(Source(path) for folder in folders if (path := _beside(example, folder, config)) is not None),
        )
        for example in examples
    ]


def with_sources(examples: Sequence[Example], family: Family, pipeline: str) -> list[Example]:
    """Hold the sources of examples against what a base takes.

    Args:
        examples: checked, with their sizes and those of their sources.
        family: of the base.
        pipeline: its class, for the error.

    Returns:
        The examples. Where a hole is filled, a picture without a source is its own.

    Raises:
        FeraError: there are too few or too many sources, no mask of a hole, or a source of another shape.
    """
    pairs = family.pairs
    if pairs is None:
        if with_some := [example.name for example in examples if example.sources]:
            raise FeraError(
                f"{len(with_some)} pictures have sources ({some_of(with_some)}), but a {pipeline} takes none: leave "
                "data.source_path out, or name another data.source_column"
            )
        return list(examples)
    if pairs.hole:
        if without := [example.name for example in examples if example.mask is None]:
            raise FeraError(
                f"a {pipeline} is told what to paint by masks, and {len(without)} pictures have none: "
                f"{some_of(without)}. Set data.mask_path (white is painted), or data.alpha_mask"
            )
        examples = [_its_own_source(example) for example in examples]
    for example in examples:
        _check(example, family, pipeline)
    return list(examples)


def describe_sources(examples: Sequence[Example]) -> list[str]:
    """A line about how many sources there are."""
    counts = sorted({len(example.sources) for example in examples})
    if not counts or counts == [0]:
        return []
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [f"each picture has {each} source {'picture' if counts == [1] else 'pictures'}"]


def _check(example: Example, family: Family, pipeline: str) -> None:
    pairs = family.pairs
    assert pairs is not None
    count = len(example.sources)
    if not pairs.least <= count <= pairs.most:
        wants = f"{pairs.least}" if pairs.least == pairs.most else f"{pairs.least} to {pairs.most}"
        raise FeraError(
            f"{example.origin} has {count or 'no'} source pictures, and a {pipeline} takes {wants}: set "
            "data.source_path to the folder of the sources, or data.source_column to their column"
        )
    for source in example.sources:
        if pairs.size is None and not same_shape(source.size, example.size):
            sizes = f"{source.size[0]} x {source.size[1]}, the picture {example.size[0]} x {example.size[1]}"
            raise FeraError(f"{example.origin} has a source, {source.path}, of another shape ({sizes})")


def _its_own_source(example: Example) -> Example:
    if example.sources:
        return example
    return replace(example, sources=(Source(example.image, example.digest, example.size, example.colours),))


def _beside(example: Example, folder: Path, config: DataConfig) -> Path | None:
    """The picture in a folder of sources that is called like the example, whatever its format."""
    beside = folder / Path(example.name)
    for suffix in (example.image.suffix, ".png", *sorted(IMAGE_SUFFIXES)):
        path = beside.with_suffix(suffix)
        if path.is_file():
            return check_inside(path, folder, follow_symlinks=config.follow_symlinks)
    return None
