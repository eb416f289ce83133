"""Streams of video and sound in files, by PyAV, which brings FFmpeg along. Files may come from strangers.

FFmpeg chooses a reader by what a file holds, and some of its readers open other files and addresses: only those of the
containers that the caller names may be chosen, and only the file itself is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fera.errors import reason_of

Kind = Literal["video", "sound"]


@contextmanager
def first_stream(path: Path, kind: Kind, containers: str) -> Iterator[tuple[Any, Any]]:
    """A file's container, and its first stream of a kind, open inside the block.

    Args:
        path: the file.
        kind: of the stream.
        containers: names that FFmpeg has for the readers that may be chosen, between commas.

    Raises:
        ValueError: PyAV is not there, or the file is empty, damaged or holds no such stream. The message does not name
            the file.
        FileNotFoundError: there is no such file.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(f"is a {kind}, which needs PyAV ({error}): pip install 'fera[{kind}]'") from None
    if path.stat().st_size == 0:
        raise ValueError("is empty (0 bytes)")
    options = {"format_whitelist": containers, "protocol_whitelist": "file"}
    try:
        with av.open(str(path.absolute()), options=options) as container:
            streams = container.streams.video if kind == "video" else container.streams.audio
            if not streams:
                raise ValueError(f"has no {kind} in it")
            yield container, streams[0]
    except FileNotFoundError:
        raise
    except (av.error.FFmpegError, IndexError) as error:  # the latter where a file holds less than its table says
        raise ValueError(f"is damaged or no {kind} that can be read ({_in_words(error)})") from None


def _in_words(error: Exception) -> str:
    """What FFmpeg said of a file that it cannot read."""
    log = getattr(error, "log", None)
    said = str(log[2]).strip() if log else ""
    return said or str(getattr(error, "strerror", None) or reason_of(error))
