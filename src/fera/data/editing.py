"""Captions of a folder as they stand in its files: read, and written back one file at a time, each whole."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fera.config import DataConfig
from fera.data.sources import scan
from fera.data.sources.files import METADATA_NAMES, media_below, read_text, sounds_below
from fera.data.sources.sharing import Beside
from fera.errors import FeraError
from fera.support.files import replace_text

# Layouts whose captions lie in files of their own, or in the metadata.
EDITABLE = ("flat", "repeats", "imagefolder")
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Captioned:
    """A picture, or a clip, of a folder.

    Args:
        name: its name in the folder; of a picture that has several rows, "#2" and so on after it.
        image: its file.
        caption: as written, in one line; empty where it has none.
    """

    name: str
    image: Path
    caption: str


@dataclass(frozen=True)
class CaptionFolder:
    """What lies in a folder.

    Args:
        folder: the folder.
        layout: as `fera.data.sources.find` calls it.
        entries: pictures in the order of training.
        notes: a line about whatever is left alone.
    """

    folder: Path
    layout: str
    entries: list[Captioned]
    notes: list[str]

    @property
    def can_be_edited(self) -> bool:
        """Whether its captions are texts that can be written back."""
        return self.layout in EDITABLE


def read_folder(folder: Path) -> CaptionFolder:
    """Look at a folder's pictures and captions; pictures are not opened.

    Raises:
        FeraError: there are no pictures, or a caption cannot be read.
    """
    # Clips are listed too. Nothing is put into captions: they are shown as they are written.
    listed = DataConfig(train_data_dir=folder, allow_missing_captions=True, num_frames=[1])
    sounds = DataConfig(train_data_dir=folder, allow_missing_captions=True, seconds=[1.0])
    found = scan(folder, sounds if _holds_sounds(folder) else listed)
    seen: Counter[str] = Counter()
    entries = []
    for example in found.examples:
        seen[example.name] += 1
        again = f"#{seen[example.name]}" if seen[example.name] > 1 else ""
        entries.append(Captioned(example.name + again, example.image, example.caption))
    return CaptionFolder(folder, found.layout, entries, found.notes)


def _holds_sounds(folder: Path) -> bool:
    """Whether there are sounds, and neither pictures nor clips."""
    try:
        return not any(media_below(folder, "clips")) and bool(sounds_below(folder))
    except OSError:
        return False


def write_captions(
    held: CaptionFolder, changes: Mapping[str, tuple[str, str]], done: Callable[[str], None] = lambda name: None
) -> None:
    """Write captions back.

    A file is written whole or not at all. Where one fails, those that were told to `done` are written, the others are
    as they were.

    Args:
        held: a fresh look at the folder.
        changes: by the name of an entry, the caption that it is thought to have and the one that it gets.
        done: hears the name of each whose caption is written.

    Raises:
        FeraError: the captions cannot be edited, one is not what it was thought to be, an entry is gone, or a file
            cannot be written.
    """
    if not held.can_be_edited:
        raise FeraError(f"{held.folder} is a {held.layout} folder, whose captions are not edited here")
    entries = {entry.name: entry for entry in held.entries}
    for name, (old, new) in changes.items():
        if name not in entries:
            raise FeraError(f"{name} is not in {held.folder} any more; look at the folder again")
        if entries[name].caption != old:
            raise FeraError(
                f"the caption of {name} was changed elsewhere meanwhile, to {entries[name].caption[:80]!r}: drop the "
                "edit of it, or make it again on what is there now"
            )
        if len(new.encode("utf-8", "replace")) > _MOST_BYTES:
            raise FeraError(f"the caption of {name} has more than {_MOST_BYTES:,} bytes; shorten it")
    try:
        if held.layout == "imagefolder":
            _write_rows(held, {name: new for name, (_, new) in changes.items()})
            for name in changes:
                done(name)
            return
        for name, path in _files(changes, entries).items():
            replace_text(path, f"{changes[name][1]}\n")
            done(name)
    except OSError as error:
        raise FeraError(
            f"cannot write captions to {held.folder}: {error.strerror or error}. Make room, save again"
        ) from error


def _files(changes: Mapping[str, tuple[str, str]], entries: Mapping[str, Captioned]) -> dict[str, Path]:
    """The file of each caption; pictures that share one cannot have two captions."""
    files: dict[str, Path] = {}
    texts: dict[Path, tuple[str, str]] = {}
    beside = Beside()
    for name, (_, new) in changes.items():
        image = entries[name].image
        stem = image.name if image.is_dir() else image.stem
        path = files[name] = next(iter(beside(image)), image.with_name(f"{stem}.txt"))
        other, text = texts.setdefault(path, (name, new))
        if text != new:
            raise FeraError(
                f"{name} and {other} have one caption file, {path.name}: give both one caption, or rename one"
            )
    return files


def _write_rows(held: CaptionFolder, changes: Mapping[str, str]) -> None:
    metadata = next(held.folder / name for name in METADATA_NAMES if (held.folder / name).is_file())
    text = read_text(metadata, "metadata file")
    config = DataConfig(train_data_dir=held.folder)
    rows = _csv_rows(text) if metadata.suffix == ".csv" else _json_rows(text)
    # Rows come first among the entries, in their order; pictures without one after them.
    for entry, row in zip(held.entries, rows, strict=False):
        if entry.name in changes:
            row[config.caption_column] = changes[entry.name]
    new: list[dict[str, object]] = [
        {config.image_column: entry.name, config.caption_column: changes[entry.name]}
        for entry in held.entries[len(rows) :]
        if entry.name in changes
    ]
    replace_text(metadata, (_to_csv if metadata.suffix == ".csv" else _to_json)([*rows, *new]))


def _json_rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _csv_rows(text: str) -> list[dict[str, object]]:
    return [dict(row) for row in csv.DictReader(io.StringIO(text))]


def _to_json(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _to_csv(rows: list[dict[str, object]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row if name is not None))
    held = io.StringIO()
    table = csv.DictWriter(held, names, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    return held.getvalue()
