"""From a folder to pictures with captions."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from fera.errors import FeraError
from fera.training.config import DataConfig
from fera.training.images import load_image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Example:
    """A picture and its caption.

    Args:
        image: path of the picture.
        caption: its caption; empty where it has none.
        digest: SHA-256 of the file, once it has been read.
        size: width and height in pixels, upright, once it has been read.
    """

    image: Path
    caption: str
    digest: str = ""
    size: tuple[int, int] = (0, 0)


def find_examples(folder: Path, config: DataConfig) -> list[Example]:
    """Find the pictures of a folder and their captions.

    With a `metadata.jsonl` or `metadata.csv` the folder is a Hugging Face imagefolder: the rows give order
    and captions. Otherwise pictures lie in the folder itself, in the order of their names, each caption in a
    file beside its picture, of the same name but for `.txt` or `.caption`.

    Args:
        folder: the folder.
        config: names of columns, and what to do about pictures without a caption.

    Returns:
        At least one example.

    Raises:
        FeraError: there is no such folder, no picture in it, a row that cannot be used, or a picture without
            a caption although `allow_missing_captions` is off.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FeraError(f"data folder {folder} {what} (looked from {Path.cwd()})")
    metadata = next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
    if metadata is not None:
        examples = _from_metadata(folder, metadata, config)
    else:
        images = sorted(path for path in folder.iterdir() if _is_image(path))
        examples = [Example(path, _caption_beside(path, config)) for path in images]
    if not examples:
        raise FeraError(
            f"no pictures in {folder}. Expected {', '.join(sorted(IMAGE_SUFFIXES))} files with a caption file "
            f"beside each, or {' or '.join(METADATA_NAMES)}; found {_inventory(folder)}"
        )
    without = [example.image.name for example in examples if not example.caption]
    if without and not config.allow_missing_captions:
        source = f"{config.caption_column!r} in {metadata.name}" if metadata else ".txt or .caption file beside it"
        raise FeraError(
            f"{len(without)} of {len(examples)} pictures in {folder} have no caption (no {source}): "
            f"{some_of(without)}. Add captions, or set data.allow_missing_captions to train on the empty caption"
        )
    return examples


def check_images(examples: Sequence[Example], *, skip_bad: bool) -> tuple[list[Example], list[str]]:
    """Decode every picture once, so that a damaged one is named before anything else happens.

    Args:
        examples: what `find_examples` found.
        skip_bad: leave pictures that cannot be used out instead of stopping.

    Returns:
        The usable examples with `digest` and `size` filled in, and a line about each one left out.

    Raises:
        FeraError: a picture cannot be used and `skip_bad` is off, or none can be used.
    """
    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        checked = list(pool.map(_check, examples))
    good = [result for result in checked if isinstance(result, Example)]
    bad = [result for result in checked if isinstance(result, str)]
    if bad and not skip_bad:
        count = "a picture" if len(bad) == 1 else f"{len(bad)} pictures"
        raise FeraError(
            f"{count} of {len(examples)} cannot be used: {some_of(bad)}. Repair or remove them, or set data.skip_bad"
        )
    if not good:
        raise FeraError(f"none of {len(examples)} pictures can be used: {some_of(bad)}")
    return good, bad


def hold_out(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Split examples into training and validation, by file name: another run holds out the same.

    Args:
        examples: at least two, unless `fraction` is 0.
        fraction: share to hold out, in [0, 1); above 0 holds out at least one and leaves at least one.

    Returns:
        Training and validation examples, each in the given order.

    Raises:
        FeraError: there are too few examples to hold one out.
    """
    if fraction == 0:
        return list(examples), []
    if len(examples) < 2:
        raise FeraError("data.validation_fraction needs two pictures at least: to train on, and to hold out")
    count = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    ranked = sorted(examples, key=lambda example: hashlib.sha256(example.image.name.encode()).digest())
    held = {example.image for example in ranked[:count]}
    return (
        [example for example in examples if example.image not in held],
        [example for example in examples if example.image in held],
    )


def crop_offset(example: Example, *, center_crop: bool, seed: int) -> float:
    """Where to crop along the longer side, 0 (start) to 1 (end); drawn from digest and seed if off centre."""
    if center_crop:
        return 0.5
    draw = hashlib.sha256(f"{seed}:{example.digest}".encode()).digest()
    return round(int.from_bytes(draw[:4], "big") / (2**32 - 1), 4)


def _check(example: Example) -> Example | str:
    try:
        image = load_image(example.image)
        digest = hashlib.sha256(example.image.read_bytes()).hexdigest()
    except FileNotFoundError:
        return f"{example.image} does not exist"
    except (ValueError, OSError) as error:
        return f"{example.image} {error}"
    return replace(example, digest=digest, size=image.size)


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _caption_beside(image: Path, config: DataConfig) -> str:
    for suffix in CAPTION_SUFFIXES:
        path = image.with_suffix(suffix)
        if path.is_file():
            try:
                return _clean(path.read_text(encoding="utf-8-sig"), config)
            except UnicodeDecodeError:
                raise FeraError(f"caption file {path} is not UTF-8 text") from None
    return ""


def _clean(text: str, config: DataConfig) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines if config.caption_lines == "join" else lines[:1])


def _from_metadata(folder: Path, metadata: Path, config: DataConfig) -> list[Example]:
    examples = []
    for where, row in _rows(metadata):
        name, caption = row.get(config.image_column), row.get(config.caption_column)
        if not isinstance(name, str) or not name:
            raise FeraError(
                f"{where} has no {config.image_column!r}; it has: {', '.join(map(str, row))}. "
                "Set data.image_column to the column of the pictures' paths"
            )
        if config.caption_column not in row and not config.allow_missing_captions:
            raise FeraError(
                f"{where} has no {config.caption_column!r}; it has: {', '.join(map(str, row))}. "
                "Set data.caption_column to the column of the captions"
            )
        if caption is not None and not isinstance(caption, str):
            raise FeraError(f"{where}: {config.caption_column!r} must be text, got {caption!r}")
        examples.append(Example(folder / name, _clean(caption or "", config)))
    # A picture without a row is a picture without a caption: it is not dropped in silence.
    listed = {example.image for example in examples}
    others = sorted(path for path in folder.rglob("*") if _is_image(path) and path not in listed)
    return examples + [Example(path, "") for path in others]


def _rows(metadata: Path) -> Iterable[tuple[str, dict[str, object]]]:
    """Rows of a metadata file, each with its place for error messages."""
    try:
        text = metadata.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FeraError(f"{metadata} is not UTF-8 text") from None
    if metadata.suffix == ".csv":
        for number, cells in enumerate(csv.DictReader(text.splitlines(keepends=True)), start=1):
            yield f"{metadata}, row {number}", dict(cells)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{metadata}, line {number},"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise FeraError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise FeraError(f"{where} must be a JSON object, got {line[:40]!r}")
        yield where, row


def _inventory(folder: Path) -> str:
    """What a folder holds, for an error message."""
    counts = Counter("folder" if path.is_dir() else path.suffix or "no suffix" for path in folder.iterdir())
    return ", ".join(f"{count} x {kind}" for kind, count in counts.most_common(6)) or "nothing"


def some_of(names: Sequence[str], limit: int = 5) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
