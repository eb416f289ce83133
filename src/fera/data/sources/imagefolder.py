"""A Hugging Face imagefolder: rows of `metadata.jsonl` or `metadata.csv` give pictures and captions."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from fera.config import DataConfig
from fera.data.captions import clean
from fera.data.example import Example, Source
from fera.data.sources.files import check_inside, media_below, named_file, read_text
from fera.errors import FeraError


def read_imagefolder(folder: Path, metadata: Path, config: DataConfig) -> list[Example]:
    """Pictures in the order of the rows, then those without a row, which have no caption."""
    examples = [_from_row(folder, where, row, config) for where, row in _rows(metadata)]
    # A picture without a row is a picture without a caption: it is not dropped in silence.
    listed = {example.image for example in examples}
    listed |= {source.path for example in examples for source in example.sources}
    others = [
        Example(path, "", name=_name(path, folder))
        for path in media_below(folder, config.reads)
        if path not in listed and path.parent not in listed  # a frame of a folder that is listed
    ]
    return examples + others


def _from_row(folder: Path, where: str, row: dict[str, object], config: DataConfig) -> Example:
    name, caption = row.get(config.image_column), row.get(config.caption_column)
    if not isinstance(name, str) or not name:
        raise FeraError(
            f"{where} has no {config.image_column!r}; it has: {_columns(row)}. "
            "Set data.image_column to the column of the pictures' paths"
        )
    captions_are_optional = config.allow_missing_captions or config.instance_prompt is not None
    if config.caption_column not in row and not captions_are_optional:
        raise FeraError(
            f"{where} has no {config.caption_column!r}; it has: {_columns(row)}. "
            "Set data.caption_column to the column of the captions"
        )
    if caption is not None and not isinstance(caption, str):
        raise FeraError(f"{where}: {config.caption_column!r} must be text, got {repr(caption)[:80]}")
    if not _is_unicode(caption or ""):
        raise FeraError(f"{where}: {config.caption_column!r} is not valid Unicode text")
    path = named_file(name, folder, where)
    sources = tuple(Source(path) for path in _sources(folder, where, row, config))
    return Example(path, clean(caption or "", config), name=_name(path, folder), sources=sources)


def _sources(folder: Path, where: str, row: dict[str, object], config: DataConfig) -> list[Path]:
    named = row.get(config.source_column)
    if named is None or named == "":
        return []
    names = named if isinstance(named, list) else [named]
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise FeraError(
            f"{where}: {config.source_column!r} must be a path or a list of paths, got {repr(wrong[0])[:80]}"
        )
    paths = [named_file(str(name), folder, where) for name in names]
    return [check_inside(path, folder, follow_symlinks=config.follow_symlinks) for path in paths]


def _rows(metadata: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows of a metadata file, each with its place for error messages."""
    text = read_text(metadata, "metadata file")
    if metadata.suffix == ".csv":
        try:
            for number, cells in enumerate(csv.DictReader(io.StringIO(text)), start=1):
                yield f"{metadata}, row {number}", dict(cells)
        except csv.Error as error:
            raise FeraError(f"{metadata} is not valid CSV: {error}") from None
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{metadata}, line {number},"
        try:
            row = json.loads(line)
        except RecursionError:
            raise FeraError(f"{where} is nested too deeply") from None
        except ValueError as error:  # also a number of thousands of digits
            raise FeraError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise FeraError(f"{where} must be a JSON object, got {line[:40]!r}")
        yield where, row


def _columns(row: dict[str, object]) -> str:
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True
