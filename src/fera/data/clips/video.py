"""Videos, by PyAV: FFmpeg's readers of four containers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fera.data.clips.clip import Clip, Frames
from fera.data.images import check_size
from fera.data.streams import first_stream

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
# Frames by which what a file says of its length may be off.
_TOLERANCE = 1.5
# Without a note about its colours, a video of more lines than this is taken for BT.709, as players do.
_STANDARD_LINES = 576
_UNSPECIFIED = 2


def look(path: Path) -> Clip:
    """Look at a video without decoding more than a frame of it.

    Raises:
        ValueError: it is empty, damaged, cut off, too large, or holds no video. The message does not name it.
        FileNotFoundError: there is no such file.
    """
    with first_stream(path, "video", _CONTAINERS) as (container, stream):
        stream.thread_type = "AUTO"
        times: list[float] = []
        end, is_cut = 0.0, False
        for packet in container.demux(stream):
            if packet.size:
                at = packet.pts if packet.pts is not None else packet.dts
                times.append(float(at * packet.time_base) if at is not None else float(len(times)))
                end = max(end, times[-1])
                is_cut |= packet.is_corrupt
        if not times:
            raise ValueError("has no frames")
        times.sort()
        last = times[-1] - times[0]
        rate = (len(times) - 1) / last if last > 0 else None
        said = max(stream.frames, _said_frames(container, stream, rate))
        if is_cut or said > len(times) + _TOLERANCE:
            of = f" of {said}" if said > len(times) else ""
            raise ValueError(f"has a broken end: it breaks off after {len(times)} frames{of}")
    frame = next(frames(path), None)
    if frame is None:
        raise ValueError("has no frames that can be decoded")
    return Clip(len(times), frame[1]().size, last, rate)


def frames(path: Path) -> Frames:
    """Decode a video frame by frame; pictures are RGB and upright.

    Raises:
        ValueError: as `look`, or a frame cannot be decoded.
        FileNotFoundError: there is no such file.
    """
    with first_stream(path, "video", _CONTAINERS) as (container, stream):
        stream.thread_type = "AUTO"
        first: float | None = None
        count = 0
        for frame in container.decode(stream):
            check_size(frame.width, frame.height)
            at = frame.time if frame.time is not None else float(count)
            first = at if first is None else first
            yield at - first, partial(_picture, frame)
            count += 1


def _said_frames(container: Any, stream: Any, rate: float | None) -> int:
    """How many frames a file should have by the length that it states of its video; 0 where it states none."""
    if rate is None:
        return 0
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    elif stated := stream.metadata.get("DURATION"):  # of Matroska, and so of WebM
        hours, minutes, rest = stated.split(":")
        seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    elif len(container.streams) == 1 and container.duration is not None:
        seconds = container.duration / 1e6
    else:
        return 0
    return round(seconds * rate)


def _picture(frame: Any) -> Image.Image:
    """A frame as RGB, upright, its pixels square."""
    from av.video.reformatter import Colorspace

    is_large = frame.height > _STANDARD_LINES
    space = Colorspace.ITU709 if frame.colorspace == _UNSPECIFIED and is_large else None
    image = Image.fromarray(frame.reformat(format="rgb24", src_colorspace=space).to_ndarray())
    turns = round(frame.rotation / 90) % 4
    return image if turns == 0 else Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(image), turns)))
