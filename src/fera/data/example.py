"""A picture, a clip or a sound with its caption, as the layouts find it and the cache encodes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fera.data.clips.clip import Clip, Part
from fera.data.sounds.sound import Excerpt, Sound


@dataclass(frozen=True)
class Source:
    """A picture that an example's picture is made of, or that its caption refers to.

    Args:
        path: path of the picture.
        digest: SHA-256 of the file, once it has been read.
        size: width and height in pixels, upright, once it has been read.
        colours: what was done about its colour profile, in words; empty where nothing was.
        frame: which frame of the example's own clip it is, counted from 0 among those that are trained on; None of a
            picture.
    """

    path: Path
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    colours: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Example:
    """A picture, a clip or a sound, and its caption.

    Args:
        image: path of the picture, or of the clip: a video, an animated picture or a folder of frames; or of the sound.
        caption: its caption as trained on; empty where it has none.
        digest: SHA-256 of the file, once it has been read.
        size: width and height in pixels, upright, once it has been read; a sound counts as one pixel.
        name: how it is called in messages, unique in its folder; the file's name when left out.
        repeats: how often an epoch sees it, at least 1.
        weight: the weight of its loss.
        mask: where its loss counts: a greyscale picture, the picture itself for its opacity, or None for all of it.
        mask_digest: SHA-256 of the mask's file, once it has been read.
        colours: what was done about its colour profile, in words; empty where nothing was.
        clip: what a look at a clip told; None of a picture.
        part: the frames of a clip that are trained on, once the frame rate is known; None of a picture.
        sound: what a look at a sound told; None of the others.
        excerpt: what of a sound is trained on, once the base is known.
        sources: the pictures that it is made of, in order; most examples have none.
        stage: name of the stage that it belongs to, which then begins its own name; empty in a run without stages.
        origin: where a person finds the picture, if that is not `image`: a row of a dataset.
    """

    image: Path
    caption: str
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    name: str = ""
    repeats: int = 1
    weight: float = 1.0
    mask: Path | None = None
    mask_digest: str = ""
    colours: str = ""
    clip: Clip | None = None
    part: Part | None = None
    sound: Sound | None = None
    excerpt: Excerpt | None = None
    origin: str = ""
    sources: tuple[Source, ...] = ()
    stage: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.image.name)
        if not self.origin:
            object.__setattr__(self, "origin", str(self.image))

    @property
    def name_in_folder(self) -> str:
        """Its name without that of its stage."""
        return self.name.removeprefix(f"{self.stage}/") if self.stage else self.name

    @property
    def frames(self) -> int:
        """How many frames are trained on: 1 of a picture."""
        return 1 if self.part is None else self.part.frames


def repeat(examples: Sequence[Example]) -> list[Example]:
    """Each example as often as an epoch sees it."""
    return [example for example in examples for _ in range(example.repeats)]


def some_of(names: Sequence[str], limit: int = 5) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
