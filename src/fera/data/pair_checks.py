"""Source pictures of examples, held against what a base takes."""

from collections.abc import Sequence
from dataclasses import replace

from fera.data.example import Example, Source, some_of
from fera.errors import FeraError
from fera.models.families import Family
from fera.models.pairs import same_shape


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
