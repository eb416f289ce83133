"""Clips into files: mp4, and contact sheets that show their frames side by side."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from fera.errors import FeraError
from fera.support.files import replace_file
from fera.version import __version__

# Of a contact sheet: most frames, and how many a row.
_MOST_FRAMES = 12
_COLUMNS = 4
_GAP = 4
# H.264's constant rate factor: not to be told from the frames by eye.
_QUALITY = "16"


def save_clip(
    frames: Sequence[Image.Image], path: Path, frame_rate: float, metadata: Mapping[str, object] | None = None
) -> None:
    """Save a clip as mp4 (H.264), with how it was made in its comment.

    Args:
        frames: at least one, of one size.
        path: the file.
        frame_rate: frames a second.
        metadata: names to values, such as prompt and seed; fera's version is added.

    Raises:
        FeraError: PyAV is missing.
        OSError: the file cannot be written.
    """
    av = _package(path)
    width, height = frames[0].size
    about = {name: str(value) for name, value in {**(metadata or {}), "fera": __version__}.items()}

    def write(file: Path) -> None:
        with av.open(str(file), "w", format="mp4") as container:
            container.metadata["comment"] = json.dumps(about, ensure_ascii=False)
            stream = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
            stream.width, stream.height = width + width % 2, height + height % 2  # colours are kept at half the size
            stream.pix_fmt, stream.options = "yuv420p", {"crf": _QUALITY}
            for frame in frames:
                for packet in stream.encode(av.VideoFrame.from_image(_even(frame))):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)

    replace_file(path, write)


def contact_sheet(frames: Sequence[Image.Image], most: int = _MOST_FRAMES, columns: int = _COLUMNS) -> Image.Image:
    """Frames of a clip side by side, from the first to the last, evenly spread.

    Args:
        frames: at least one, of one size; of one, that frame itself is what is given.
        most: how many it shows at most.
        columns: how many a row.

    Returns:
        RGB.
    """
    if len(frames) == 1:
        return frames[0]
    count = min(most, len(frames))
    shown = (
        [frames[round(number * (len(frames) - 1) / (count - 1))] for number in range(count)] if count > 1 else frames
    )
    columns = min(columns, count)
    rows = -(-count // columns)
    width, height = frames[0].size
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, frame in enumerate(shown[:count]):
        row, column = divmod(number, columns)
        sheet.paste(frame, (column * (width + _GAP), row * (height + _GAP)))
    return sheet


def _even(frame: Image.Image) -> Image.Image:
    """A frame with even sides: the last row or column comes twice where one is odd."""
    width, height = frame.size
    if width % 2 == height % 2 == 0:
        return frame
    even = Image.new("RGB", (width + width % 2, height + height % 2))
    even.paste(frame, (width % 2, height % 2))
    even.paste(frame, (0, 0))
    return even


def _package(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise FeraError(f"{path.name} is a video, which needs PyAV ({error}): pip install 'fera[video]'") from None
    return av
