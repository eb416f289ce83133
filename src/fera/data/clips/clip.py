"""What a clip is, and what of it is trained on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

# A frame's time in seconds from the first one, and how to get its picture: frames that are passed over cost no picture.
Frame = tuple[float, Callable[[], Image.Image]]
Frames = Iterator[Frame]

# Rates as near as 24 and 23.976, or 16 and 15.9, are the same: frames are taken as they come.
_SAME_RATE = 0.05
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Clip:
    """What a look at a clip told.

    Args:
        frames: how many it has, at least 1.
        size: width and height in pixels, upright.
        last: time of the last frame in seconds from the first.
        frame_rate: frames a second; None of a folder of frames, which has whatever rate is asked for, and of one frame.
    """

    frames: int
    size: tuple[int, int]
    last: float = 0.0
    frame_rate: float | None = None

    @property
    def seconds(self) -> float | None:
        """Its length; None where it has no frame rate."""
        return None if self.frame_rate is None else self.last + 1 / self.frame_rate

    def frames_at(self, rate: float) -> int:
        """How many frames it has at a rate, in frames a second.

        Raises:
            ValueError: its own rate is lower: frames would have to be made up. The message does not name the clip.
        """
        if self.takes_every_frame(rate):
            return self.frames
        assert self.frame_rate is not None
        if self.frame_rate < rate:
            raise ValueError(
                f"has {self.frame_rate:.4g} frames a second, fewer than the {rate:g} that it is to be trained at; "
                f"set data.frame_rate to {self.frame_rate:.4g} or less, or convert it"
            )
        return int(self.last * rate + _ROUNDING) + 1

    def takes_every_frame(self, rate: float) -> bool:
        """Whether its own rate is, or counts as, this one."""
        return self.frame_rate is None or abs(self.frame_rate / rate - 1) <= _SAME_RATE


@dataclass(frozen=True)
class Part:
    """The frames of a clip that one example is trained on.

    Args:
        start: the first of them, counted at the frame rate.
        frames: how many.
        frame_rate: frames a second.
    """

    start: int
    frames: int
    frame_rate: float


def at_rate(frames: Frames, rate: float) -> Iterator[Callable[[], Image.Image]]:
    """What is to be seen at each tick of a rate, in frames a second: the frame that was shown last."""
    tick, last, shown = 0, 0.0, None
    for time, picture in frames:
        while shown is not None and tick < time * rate - _ROUNDING:
            yield shown
            tick += 1
        last, shown = time, picture
    if shown is not None and tick <= last * rate + _ROUNDING:
        yield shown
