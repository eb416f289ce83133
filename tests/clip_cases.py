"""Small clips, made on the fly."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def frame(number: int, width: int = 48, height: int = 32) -> Image.Image:
    """A bar that moves to the right, 4 pixels a frame, over a ground of brightness 6 a frame."""
    pixels = np.full((height, width, 3), min(255, 6 * number), dtype=np.uint8)
    pixels[:, (4 * number) % width :][:, :4] = (255, 0, 0)
    return Image.fromarray(pixels)


def write_video(
    path: Path, frames: int = 20, rate: float = 16, size: tuple[int, int] = (48, 32), **options: str
) -> Path:
    """A video of `frame`s; the ending says how it is coded."""
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "libx264": {"crf": "4", "g": "8"},
            "libvpx-vp9": {"crf": "4", "b": "0", "deadline": "realtime", "cpu-used": "8"},
            "mpeg4": {"b": "8000000"},
        }[codec]
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_image(frame(number, *size))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_gif(path: Path, frames: int = 20, seconds: float = 0.06) -> Path:
    """An animated picture of `frame`s; the ending says of which format."""
    pictures = [frame(number) for number in range(frames)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), **options)
    return path


def write_folder(path: Path, frames: int = 20) -> Path:
    """A folder of `frame`s: frame1.png, …, frame10.png."""
    path.mkdir()
    for number in range(frames):
        frame(number).save(path / f"frame{number + 1}.png")
    return path


def clip_folder(folder: Path) -> Path:
    """One clip of each kind and a still picture, each with its caption."""
    folder.mkdir()
    write_video(folder / "a.mp4")
    write_video(folder / "b.webm", rate=32, frames=40)
    write_gif(folder / "c.gif")
    write_folder(folder / "d")
    frame(3).save(folder / "e.png")
    for name, caption in zip(
        "abcde", ["a red rocket", "a green tree", "a blue house", "a yellow cat", "the sun"], strict=True
    ):
        (folder / f"{name}.txt").write_text(caption)
    return folder
