"""Where the pixels that are trained on lie in a picture, as bases that are conditioned on it are told."""

from dataclasses import dataclass

# Width and height in pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """How a picture was brought to the size that it is trained at.

    Args:
        original: its width and height in pixels, upright.
        left: pixels cut off to the left, once it was scaled.
        top: pixels cut off above, once it was scaled.
        size: width and height that it is trained at.
    """

    original: Size
    left: int
    top: int
    size: Size


def place(picture: Size, size: Size, offset: float, *, mirrored: bool = False) -> Placement:
    """Describe what `fera.data.tensors.to_tensor` does to a picture, as diffusers' scripts describe it.

    They scale a picture to whole pixels first and cut then.

    Args:
        picture: width and height in pixels, upright.
        size: width and height that it is brought to.
        offset: where to crop, 0 (left or top) to 1.
        mirrored: whether it is mirrored left to right, before it is cut.
    """
    width, height = picture
    if size[0] * height >= size[1] * width:
        scaled = size[0], size[0] * height // width
    else:
        scaled = size[1] * width // height, size[1]
    left, top = (round((side - kept) * offset) for side, kept in zip(scaled, size, strict=True))
    return Placement(picture, scaled[0] - size[0] - left if mirrored else left, top, size)
