"""Layouts of data folders. Which one a folder has is seen by looking; one module each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fera.config import DataConfig
from fera.data.captions import with_trigger
from fera.data.example import Example, some_of
from fera.data.picture_formats import CONVERT, IMAGE_SUFFIXES, SOUND_SUFFIXES
from fera.data.sources.dataset import parquet_files, read_dataset, read_parquet, read_saved
from fera.data.sources.files import (
    METADATA_NAMES,
    check_inside,
    entries_in,
    images_below,
    media_in,
    sounds_below,
    unread_below,
    videos_below,
)
from fera.data.sources.flat import read_flat
from fera.data.sources.imagefolder import read_imagefolder
from fera.data.sources.repeats import read_repeats, repeat_folders
from fera.data.sources.saved import saved_splits
from fera.data.sources.sharing import describe_inner_metadata, describe_metadata, describe_sharing
from fera.data.sources.tar import read_tars, tar_files
from fera.errors import FeraError


@dataclass(frozen=True)
class Found:
    """What lies in a data folder.

    Args:
        layout: "flat", "imagefolder", "repeats", "parquet", "tar", "saved" or "dataset"; of stages how many and
            theirs.
        examples: at least one; pictures may lack a caption.
        captions_from: where captions come from, in words.
        notes: a line about whatever is left alone.
    """

    layout: str
    examples: list[Example]
    captions_from: str
    notes: list[str]

    @property
    def without_caption(self) -> list[str]:
        """Names of pictures that have no caption."""
        return [example.name for example in self.examples if not example.caption]


def find_examples(folder: Path, config: DataConfig) -> list[Example]:
    """Find the pictures of a folder and their captions.

    With a `metadata.jsonl` or `metadata.csv` the folder is a Hugging Face imagefolder: the rows give order and
    captions. With folders named `10_words` in it, it is kohya's: their pictures are seen ten times an epoch. Otherwise
    pictures lie in the folder itself, in the order of their names, each caption in a file beside its picture, of the
    same name but for `.txt` or `.caption`. A folder of parquet files and no pictures is a dataset, and so is one that
    `Dataset.save_to_disk` wrote: rows hold both. A folder of tar archives is a WebDataset: members of one name do.

    Args:
        folder: the folder.
        config: names of columns, the trigger word, and what to do about pictures without a caption.

    Returns:
        At least one example, with captions as trained on.

    Raises:
        FeraError: there is no such folder, no picture in it, a row or link that cannot be used, or a picture without a
            caption although neither `instance_prompt` nor `allow_missing_captions` is set.
    """
    return find(folder, config).examples


def find(folder: Path, config: DataConfig) -> Found:
    """As `find_examples`, with notes about what is left alone."""
    return check_captions(scan(folder, config), folder, config)


def scan(folder: Path, config: DataConfig) -> Found:
    """As `find_examples`, but pictures may lack a caption, and the layout is told."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FeraError(f"data folder {folder} {what} (looked from {Path.cwd()})")
    try:
        found = _read(folder, config)
        unread = _unread(folder, config)
    except OSError as error:
        raise FeraError(f"data folder {folder} cannot be read: {error.strerror or error}") from error
    if not found.examples:
        sounds = config.reads_sounds
        raise FeraError(
            f"no {'sounds' if sounds else 'pictures'} in {folder}. Expected "
            f"{', '.join(sorted(SOUND_SUFFIXES if sounds else IMAGE_SUFFIXES))} files with a caption file beside "
            f"each, {' or '.join(METADATA_NAMES)}, folders named like '10_words', .parquet or .tar files, or a "
            f"dataset as save_to_disk writes it; found {_inventory(folder)}{''.join(f'. {note}' for note in unread)}"
        )
    if found.layout not in ("parquet", "saved", "tar"):  # their pictures lie in a folder of fera's
        for example in found.examples:
            check_inside(example.image, folder, follow_symlinks=config.follow_symlinks)
    return _captioned_all(replace(found, notes=found.notes + unread), config)


def scan_training(config: DataConfig) -> Found:
    """As `scan`, of what a run trains on: a folder, the folders of its stages, or a dataset by its name."""
    if config.stages:
        return _scan_stages(config)
    if config.dataset_name is None:
        assert config.train_data_dir is not None
        return scan(config.train_data_dir, config)
    examples = read_dataset(config.dataset_name, config)
    if not examples:
        raise FeraError(f"data.dataset_name {config.dataset_name!r}, split {config.dataset_split!r}, has no rows")
    folder = Path(config.dataset_name)
    notes = _unread(folder, config) if folder.is_dir() else []
    return _captioned_all(Found("dataset", examples, f"text in column {config.caption_column!r}", notes), config)


def _scan_stages(config: DataConfig) -> Found:
    """Pictures of all stages in the given order, each named after its stage too."""
    parts = []
    for name, stage in zip(config.stage_names, config.stages, strict=True):
        found = scan(stage.train_data_dir, config)
        examples = [replace(example, name=f"{name}/{example.name}", stage=name) for example in found.examples]
        parts.append(replace(found, examples=examples, notes=[f"{name}: {note}" for note in found.notes]))
    layouts = list(dict.fromkeys(part.layout for part in parts))
    return Found(
        layout=f"{len(parts)} stages, {', '.join(layouts)}",
        examples=[example for part in parts for example in part.examples],
        captions_from=" or ".join(dict.fromkeys(part.captions_from for part in parts)),
        notes=[note for part in parts for note in part.notes],
    )


def check_captions(found: Found, source: Path | str, config: DataConfig) -> Found:
    """Refuse pictures without a caption, unless they are asked for."""
    without = found.without_caption
    if without and not config.allow_missing_captions:
        raise FeraError(
            f"{len(without)} of {len(found.examples)} {config.things} in {source} have no caption (no "
            f"{found.captions_from}): {some_of(without)}. Add captions, or set data.instance_prompt for one that they "
            "share, or data.allow_missing_captions to train on the empty caption"
        )
    return found


def _read(folder: Path, config: DataConfig) -> Found:
    metadata = next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
    beside = ".txt or .caption file beside it"
    if metadata is not None:
        check_inside(metadata, folder, follow_symlinks=config.follow_symlinks)
        captions = f"{config.caption_column!r} in {metadata.name}"
        examples = read_imagefolder(folder, metadata, config)
        return Found("imagefolder", examples, captions, describe_metadata(examples, folder, metadata))
    inner = repeat_folders(folder)
    if not any(media_in(path, config.reads) for path, _, _ in inner):
        flat = read_flat(folder, config)
        if config.reads_sounds:
            return Found("flat", flat, beside, describe_sharing(flat, folder))
        if not flat and (splits := saved_splits(folder, follow_symlinks=config.follow_symlinks)):
            captions = f"text in column {config.caption_column!r}"
            return Found("saved", read_saved(splits, str(folder), config), captions, [])
        if not flat and (files := parquet_files(folder)):
            captions = f"text in column {config.caption_column!r}"
            return Found("parquet", read_parquet(files, folder, config), captions, _left_alone(folder, ()))
        if not flat and (files := tar_files(folder)):
            captions = f".txt, .caption or {config.caption_column!r} in .json beside it"
            return Found("tar", read_tars(files, folder, config), captions, _left_alone(folder, ()))
        clips = [example.image for example in flat if example.image.is_dir()]
        notes = [*_left_alone(folder, clips), *describe_sharing(flat, folder)]
        if flat and (files := parquet_files(folder)):
            names = some_of([path.relative_to(folder).as_posix() for path in files])
            notes.append(f"parquet files are left alone, for there are pictures beside them: {names}")
        return Found("flat", flat, beside, notes)
    if loose := [path.name for path in media_in(folder, config.reads) if path.is_file()]:
        raise FeraError(
            f"{folder} holds pictures ({some_of(loose)}) beside folders with repeats ({inner[0][0].name}): move them "
            "into a folder like '1_words', or train the folders one by one"
        )
    examples = read_repeats(folder, config)
    folders = [*(path for path, _, _ in inner), *(example.image for example in examples if example.image.is_dir())]
    notes = [
        *_left_alone(folder, folders),
        *describe_sharing(examples, folder),
        *describe_inner_metadata(folder, folders),
    ]
    return Found("repeats", examples, beside, notes)


def _captioned_all(found: Found, config: DataConfig) -> Found:
    return replace(found, examples=[_captioned(example, config) for example in found.examples])


def _captioned(example: Example, config: DataConfig) -> Example:
    caption = example.caption or config.instance_prompt or ""
    if caption or config.trigger_word is not None and config.allow_missing_captions:
        caption = with_trigger(caption, config)
    return replace(example, caption=caption)


def _left_alone(folder: Path, used: Sequence[Path]) -> list[str]:
    """A line about each folder inside whose pictures are not trained on."""
    notes = []
    for entry in entries_in(folder):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            path = folder / entry.name
            # Of a folder with repeats only the pictures in itself are trained on.
            below = (image for image in images_below(path) if image.parent not in used)
            if count := sum(1 for _ in below):
                notes.append(f"{path.name}/: {count} pictures left alone, for they lie in a folder of their own")
    return notes


def _unread(folder: Path, config: DataConfig) -> list[str]:
    """Lines about files that look like pictures or videos and are not read."""
    notes = [
        *([] if config.reads_clips else _unread_videos(folder)),
        *([] if config.reads_sounds else _unread_sounds(folder)),
    ]
    if not (paths := unread_below(folder)):
        return notes
    names = some_of([path.relative_to(folder).as_posix() for path in paths])
    kinds = ", ".join(sorted({path.suffix.lower() for path in paths}))
    files = "1 file is" if len(paths) == 1 else f"{len(paths)} files are"
    return [*notes, f"{files} left alone, for pictures of that format are not read ({kinds}): {names}; {CONVERT}"]


def _unread_videos(folder: Path) -> list[str]:
    if not (paths := videos_below(folder)):
        return []
    names = some_of([path.relative_to(folder).as_posix() for path in paths])
    files = "1 video is" if len(paths) == 1 else f"{len(paths)} videos are"
    return [f"{files} left alone: {names}; set data.num_frames to train on clips"]


def _unread_sounds(folder: Path) -> list[str]:
    if not (paths := sounds_below(folder)):
        return []
    names = some_of([path.relative_to(folder).as_posix() for path in paths])
    files = "1 sound is" if len(paths) == 1 else f"{len(paths)} sounds are"
    return [f"{files} left alone: {names}; set data.seconds to train on sound"]


def _inventory(folder: Path) -> str:
    """What a folder holds, for an error message."""
    counts = Counter("folder" if path.is_dir() else path.suffix or "no suffix" for path in folder.iterdir())
    return ", ".join(f"{count} x {kind}" for kind, count in counts.most_common(6)) or "nothing"
