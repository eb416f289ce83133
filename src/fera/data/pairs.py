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


def describe_sources(examples: Sequence[Example]) -> list[str]:
    """A line about how many sources there are."""
    counts = sorted({len(example.sources) for example in examples})
    if not counts or counts == [0]:
        return []
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [f"each picture has {each} source {'picture' if counts == [1] else 'pictures'}"]


def _beside(example: Example, folder: Path, config: DataConfig) -> Path | None:
    """The picture in a folder of sources that is called like the example, whatever its format."""
    beside = folder / Path(example.name)
    for suffix in (example.image.suffix, ".png", *sorted(IMAGE_SUFFIXES)):
        path = beside.with_suffix(suffix)
        if path.is_file():
            return check_inside(path, folder, follow_symlinks=config.follow_symlinks)
    return None
