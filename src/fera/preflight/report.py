"""What a check of the data found."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fera.data.buckets import Size
from fera.errors import FeraError

if TYPE_CHECKING:
    from fera.data.caption_checks import TextLimit
    from fera.preflight.costs import Estimates


@dataclass(frozen=True)
class ClipReport:
    """What a clip is, and what of it is trained on.

    Args:
        frames: how many it has.
        frame_rate: frames a second; None of a folder of frames.
        seconds: its length; None of a folder of frames.
        trained_frames: how many of them are trained on, from the first one on; None where no frame rate is known.
        trained_rate: at how many a second.
    """

    frames: int
    frame_rate: float | None
    seconds: float | None
    trained_frames: int | None
    trained_rate: float | None


@dataclass(frozen=True)
class SoundReport:
    """What a sound is, and what of it is trained on.

    Args:
        seconds: its length.
        rate: samples a second.
        channels: how many.
        codec: how it is coded.
        trained_seconds: of its beginning; None where no base is known.
        length: seconds that it is brought to, with silence behind it; likewise.
        trained_rate: samples a second that it is brought to; likewise.
        trained_channels: likewise.
    """

    seconds: float
    rate: int
    channels: int
    codec: str
    trained_seconds: float | None
    length: float | None
    trained_rate: int | None
    trained_channels: int | None


@dataclass(frozen=True)
class PictureReport:
    """What becomes of one picture, clip or sound.

    Args:
        name: the name of the picture.
        size: its width and height, upright.
        repeats: how often an epoch sees it.
        bucket: width and height that it is brought to; None where no size is known.
        crop: left, top, width and height of the part of it that is seen; None where no size is known.
        caption: as trained on.
        mask: file of its mask; None where all of it counts.
        sources: files of its source pictures, in order.
        held_out: whether only the held-out loss sees it.
        colours: what is done about its colour profile; empty where nothing is.
        clip: what it is as a clip; None of a picture.
        sound: what it is as a sound; None of the others.
    """

    name: str
    size: Size
    repeats: int
    bucket: Size | None
    crop: tuple[float, float, float, float] | None
    caption: str
    mask: str | None
    sources: list[str]
    held_out: bool
    colours: str
    clip: ClipReport | None = None
    sound: SoundReport | None = None


@dataclass
class DataReport:
    """How a folder would be trained on.

    Args:
        folder: the folder of the training pictures, or the name of the dataset.
        layout: "flat", "imagefolder", "repeats", "parquet", "saved" or "dataset".
        pictures: usable ones, held out or not.
        rows: training pictures in an epoch, repeats counted.
        held_out: pictures held out.
        class_pictures: how many there are.
        class_pictures_to_draw: how many the base has to draw.
        smallest: width and height of the picture with the fewest pixels.
        largest: the largest of that with the most.
        sizes: width and height that each picture is brought to, by its name; empty where no size is known.
        listing: each usable picture, those to train on first.
        buckets: a line about each size.
        enlarged: pictures smaller than their size.
        cropped: pictures longer than any bucket.
        samples: names and captions of some pictures, as trained on.
        duplicates: names of pictures whose files are equal.
        leaked: pictures that are trained on and held out.
        text_limits: how much of captions each text encoder reads, and which are cut; empty where no base is known.
        cleaned: a line about captions of which the base removes something before it reads them.
        bad: a line about each picture that cannot be used.
        colours: a line about each thing that is done about colour profiles.
        notes: a line about whatever is left alone.
        problems: why training would refuse.
        estimates: what a run will cost; None where no base is known.
    """

    folder: str
    layout: str = "unknown"
    pictures: int = 0
    rows: int = 0
    held_out: int = 0
    class_pictures: int = 0
    class_pictures_to_draw: int = 0
    smallest: Size | None = None
    largest: Size | None = None
    sizes: dict[str, Size] = field(default_factory=dict)
    listing: list[PictureReport] = field(default_factory=list)
    buckets: list[str] = field(default_factory=list)
    enlarged: list[str] = field(default_factory=list)
    cropped: list[str] = field(default_factory=list)
    samples: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    text_limits: list["TextLimit"] = field(default_factory=list)
    cleaned: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    colours: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    estimates: "Estimates | None" = None


class noting:
    """Notes a `FeraError` of the block as a problem and goes on after it."""

    def __init__(self, report: DataReport) -> None:
        self._problems = report.problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, FeraError):
            self._problems.append(str(error))
            return True
        return False
