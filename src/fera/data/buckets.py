"""Sizes to train at: one square, or buckets that keep the aspect of pictures.

All buckets have about the area of the square, so a batch costs about the same whichever it is from.
"""

import math
from collections import Counter
from collections.abc import Sequence

from fera.data.checking import Example

Size = tuple[int, int]
# Width, height and, of a clip of several frames, their number. Of a sound, its samples a channel alone.
Shape = tuple[int, ...]

# Pictures beyond 1:4 are cropped to it.
MAX_ASPECT = 4.0
# The usual sizes of SDXL and later bases, such as 832 x 1216, are whole multiples of it.
_STEP = 64


def default_step(resolution: int, multiple: int, *, former: bool = False) -> int:
    """Step between the sides of buckets where none is set: 64 pixels, or an eighth of a small resolution.

    Args:
        resolution: side of the square in pixels.
        multiple: sides that the base can take are multiples of it.
        former: an eighth of any resolution, which runs began with whose checkpoints name no step.

    Returns:
        A multiple of `multiple`, about so long.
    """
    eighth = resolution // 8
    return max(1, (eighth if former else min(_STEP, eighth)) // multiple) * multiple


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """The sizes that pictures are brought to.

    Args:
        resolution: side of the square whose area no bucket exceeds, in pixels; a multiple of `step`.
        step: sides are multiples of it.

    Returns:
        (width, height) in pixels from 1:4 to 4:1, tall to wide, the square among them.
    """
    shortest = max(step, math.ceil(resolution / math.sqrt(MAX_ASPECT) / step) * step)
    tall = [(width, resolution**2 // width // step * step) for width in range(shortest, resolution, step)]
    return [*tall, (resolution, resolution), *((height, width) for width, height in reversed(tall))]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect is nearest to a picture's, on a logarithmic scale: it crops least.

    Args:
        size: width and height of the picture in pixels.
        buckets: as `bucket_sizes`.
    """
    aspect = math.log(size[0] / size[1])

    def distance(bucket: Size) -> tuple[float, int]:
        # Halfway between two, the one nearer to the square: a tall picture then fares as its turned copy.
        return round(abs(math.log(bucket[0] / bucket[1]) - aspect), 9), max(bucket)

    return min(buckets, key=distance)


def assign_sizes(examples: Sequence[Example], buckets: Sequence[Size]) -> list[Size]:
    """Width and height that each picture is trained at."""
    return [nearest_bucket(example.size, buckets) for example in examples]


def assign_shapes(examples: Sequence[Example], buckets: Sequence[Size]) -> list[Shape]:
    """What each picture, clip or sound is brought to: those of one shape can be in one batch."""
    sizes = assign_sizes(examples, buckets)
    return [_shape(example, size) for example, size in zip(examples, sizes, strict=True)]


def _shape(example: Example, size: Size) -> Shape:
    if example.excerpt is not None:
        return (example.excerpt.samples,)
    return size if example.frames == 1 else (*size, example.frames)


def describe_buckets(shapes: Sequence[Shape], batch_size: int) -> list[str]:
    """A line about each bucket that holds pictures, tall to wide: "64 x 96: 5 pictures, 2 batches, the last of 1".

    Of clips: "64 x 96, 17 frames: 5 clips, 2 batches, the last of 1".
    """
    lines = []
    for shape, count in sorted(Counter(shapes).items(), key=lambda item: (item[0][0] / item[0][1], item[0][2:])):
        width, height, *frames = shape
        batches, rest = math.ceil(count / batch_size), count % batch_size
        incomplete = f", the last of {rest}" if rest else ""
        kind, plural = ("clip" if frames else "picture") + ("" if count == 1 else "s"), "" if batches == 1 else "es"
        what = f"{width} x {height}" + "".join(f", {number} frames" for number in frames)
        lines.append(f"{what}: {count} {kind}, {batches} batch{plural}{incomplete}")
    return lines
