"""Class pictures in a folder: how they are read, and how many there are."""

from pathlib import Path

from fera.config import DataConfig
from fera.data.sources.files import images_below


def class_settings(data: DataConfig) -> DataConfig:
    """How class pictures are read: with their own prompt, and without the trigger word."""
    return data.model_copy(update={"instance_prompt": data.class_prompt, "trigger_word": None, "num_frames": []})


def count_class_images(folder: Path) -> int:
    """Pictures that are there already."""
    return sum(1 for _ in images_below(folder)) if folder.is_dir() else 0
