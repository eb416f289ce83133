"""What a sound is, and what of it is trained on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Shape (channels, N), in [-1, 1].
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """What a look at a sound told.

    Args:
        seconds: its length, above 0.
        rate: samples a second.
        channels: at least 1.
        codec: how it is coded, as FFmpeg calls it.
    """

    seconds: float
    rate: int
    channels: int
    codec: str


@dataclass(frozen=True)
class Excerpt:
    """What of a sound one example is trained on: its beginning, and silence behind it where it is shorter.

    Args:
        samples: how many a channel, silence counted.
        rate: samples a second.
        channels: 1 or 2.
        kept: seconds of the sound itself at most.
        told: seconds of sound that the base is told of.
    """

    samples: int
    rate: int
    channels: int
    kept: float
    told: float

    @property
    def content(self) -> tuple[float, ...]:
        """What the samples depend on."""
        return (self.samples, self.rate, self.channels, self.kept)


@dataclass(frozen=True)
class Waveform:
    """A sound that was decoded or drawn.

    Args:
        samples: 1 or 2 channels.
        rate: samples a second.
    """

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples.shape[1] / self.rate
