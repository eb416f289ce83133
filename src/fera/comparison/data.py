"""The pictures of a study's styles."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from fera.comparison.study import DATA, Study, style_name
from fera.data.checking import find_examples
from fera.demo import STYLES, unpack_style
from fera.errors import FeraError
from fera.training import DataConfig

SPLITS = ("train", "validation", "test")


def style_folders(study: Study, output: Path) -> dict[str, Path]:
    """Folders of all styles, each with `train/`, `validation/` and `test/`.

    Bundled styles are unpacked into the study's folder, those that are stages of a run too. Where the study wants fewer
    training pictures, they are the first in the order of a hash of their names: a smaller number is a part of a larger
    one.

    Args:
        study: the study.
        output: its folder.

    Returns:
        By the name of the style.

    Raises:
        FeraError: a split is missing, or has too few pictures.
    """
    for style in study.stage_styles:
        _prepare(style, study, output / DATA, None)
    return {style_name(style): _prepare(style, study, output / DATA, study.training_pictures) for style in study.styles}


def test_folder(study: Study, name: str, output: Path) -> Path:
    """Where `style_folders` has or had a style's test pictures.

    Args:
        study: the study.
        name: the name of the style.
        output: the study's folder.
    """
    (style,) = [style for style in study.styles if style_name(style) == name]
    return _place(style, output / DATA, study.training_pictures) / "test"


def _place(style: str, folder: Path, count: int | None) -> Path:
    """Where a style's pictures lie: folders that are used whole stay where they are."""
    if style not in STYLES and count is None:
        return Path(style)
    name = style_name(style)
    return folder / (name if count is None else f"{name}-{count}")


def _prepare(style: str, study: Study, folder: Path, count: int | None) -> Path:
    place = _place(style, folder, count)
    if style not in STYLES:
        for split in SPLITS:
            if not (Path(style) / split).is_dir():
                raise FeraError(f"style {style} has no folder {split}; a style needs {', '.join(SPLITS)}")
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".preparing-") as temporary:
        made = Path(temporary, "style")
        unpack_style(style, made) if style in STYLES else shutil.copytree(style, made)
        if count is not None:
            _keep_first(made / "train", count, study)
        try:
            made.rename(place)
        except OSError:
            if not place.is_dir():  # another process was first
                raise
    return place


def _keep_first(folder: Path, count: int, study: Study) -> None:
    """Leave some of a folder's training pictures, as an imagefolder of its own."""
    config = DataConfig.model_validate({"train_data_dir": folder, **study.data})
    examples = find_examples(folder, config)
    if len(examples) < count:
        raise FeraError(f"training_pictures is {count}, but {folder.parent.name} has {len(examples)}: lower it")
    if any(not example.image.is_relative_to(folder) for example in examples):
        raise FeraError(f"training_pictures needs a style of picture files, and {folder.parent.name} is no such folder")
    ranked = sorted(examples, key=lambda example: hashlib.sha256(example.image.name.encode()).digest())[:count]
    rows = [
        {config.image_column: os.path.relpath(example.image, folder), config.caption_column: example.caption}
        for example in sorted(ranked, key=lambda example: example.image.name)
    ]
    kept = {example.image for example in ranked}
    for example in examples:
        if example.image not in kept:
            example.image.unlink()
    for name in ("metadata.csv", "metadata.jsonl"):
        (folder / name).unlink(missing_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
