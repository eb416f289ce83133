"""A flat folder: `a.png`, `a.mp4` or a folder of frames `a/`, and its caption `a.txt` or `a.caption`."""

from pathlib import Path

from fera.config import DataConfig
from fera.data.captions import clean
from fera.data.example import Example
from fera.data.sources.files import check_inside, media_in, read_text
from fera.data.sources.sharing import Beside


def read_flat(folder: Path, config: DataConfig) -> list[Example]:
    """Pictures and clips that lie in the folder itself, in the order of their names."""
    beside = Beside()
    found = media_in(folder, config.reads)
    return [Example(path, caption_of(path, beside, folder, config)) for path in found]


def caption_of(image: Path, beside: Beside, folder: Path, config: DataConfig) -> str:
    """The caption in a file beside a picture, empty where there is none; `folder` is the data folder."""
    for path in beside(image)[:1]:
        check_inside(path, folder, follow_symlinks=config.follow_symlinks)
        return clean(read_text(path, "caption file"), config)
    return ""
