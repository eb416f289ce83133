"""Source pictures of examples, held against what a base takes."""

from collections.abc import Sequence
from dataclasses import replace

from fera.data.example import Example, Source, some_of
from fera.errors import FeraError
from fera.models.families import Family
from fera.models.pairs import same_shape


def with_sources(
    examples: Sequence[Example], family: Family, pipeline: str, *, last_frame: bool = False
) -> list[Example]:
    """Hold the sources of examples against what a base takes.

    Args:
        examples: checked, with their sizes and those of their sources, and with the frames of clips settled.
        family: of the base.
        pipeline: its class, for the error.
        last_frame: whether clips give their last frame too, where a base is given frames.

    Returns:
        The examples. Where a hole is filled, a picture without a source is its own. Where a base is given frames, they
        are the sources of a clip.

    Raises:
        FeraError: there are too few or too many sources, no mask of a hole, or a source of another shape; or pictures
            among the examples of a base that is given frames.
    """
    pairs = family.pairs
    if last_frame and (pairs is None or pairs.frames is None or pairs.most < 2):
        raise FeraError(
            f"data.last_frame is set, but a {pipeline} is given no last frame: leave it out, or take a base that draws "
            "between two pictures"
        )
    if pairs is not None and pairs.frames is not None:
        return _with_frames(examples, pipeline, both=last_frame or pairs.least == 2)
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


def _with_frames(examples: Sequence[Example], pipeline: str, *, both: bool) -> list[Example]:
    """Each clip with its first frame for a source, or its first and its last."""
    if still := [example.name for example in examples if example.frames == 1]:
        raise FeraError(
            f"a {pipeline} draws what follows a given frame, and {len(still)} examples have but one: {some_of(still)}. "
            "Set data.num_frames, and take pictures out or train on them with a pipeline from texts alone"
        )
    if with_some := [example.name for example in examples if example.sources]:
        raise FeraError(
            f"{len(with_some)} clips have sources ({some_of(with_some)}), but a {pipeline} is given their own frames: "
            "leave the column of sources out"
        )
    return [
        replace(
            example,
            sources=tuple(
                Source(example.image, example.digest, example.size, example.colours, frame)
                for frame in (0, *((example.frames - 1,) if both else ()))
            ),
        )
        for example in examples
    ]


def _its_own_source(example: Example) -> Example:
    if example.sources:
        return example
    return replace(example, sources=(Source(example.image, example.digest, example.size, example.colours),))
