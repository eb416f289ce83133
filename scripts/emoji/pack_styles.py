"""Pack the style sets into `src/fera/demo/styles/NAME.zip`, small enough to be committed.

Every archive is an imagefolder: `train/`, `validation/` and `test/`, each with pictures and a
`metadata.jsonl`. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sets
from concepts import base_concepts
from PIL import Image
from rich.progress import track

LIMITS = {"train": 400, "validation": 100, "test": 1000}  # pictures of a split, at most
_LONG_AGO = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the oldest time that a zip file knows; any fixed one keeps the bytes the same


def encode(image: np.ndarray) -> tuple[str, bytes]:
    """Compress a picture without loss.

    Args:
        image: shape (64, 64, 3), uint8.

    Returns:
        File name suffix and content, of WebP or PNG, whichever is smaller.
    """
    picture, candidates = Image.fromarray(image), []
    for suffix, options in {
        ".webp": {"lossless": True, "quality": 100, "method": 6},
        ".png": {"optimize": True},
    }.items():
        buffer = io.BytesIO()
        picture.save(buffer, suffix[1:].upper(), **options)
        candidates.append((suffix, buffer.getvalue()))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def choose(names: Iterable[str], known: set[str]) -> dict[str, list[str]]:
    """Choose the pictures of a style: concepts that the base knows, in an order that all sets share.

    Args:
        names: all concepts of the set.
        known: concepts that the base has learned.

    Returns:
        Sorted names of each split.
    """
    order = sorted(known.intersection(names), key=lambda name: hashlib.sha1(f"pack {name}".encode()).digest())
    return {
        split: sorted([name for name in order if sets.split_of(name) == split][:limit])
        for split, limit in LIMITS.items()
    }


def pack(style: sets.EmojiSet, known: set[str], work: Path, folder: Path) -> Path:
    """Write the archive of one style.

    Args:
        style: line of the table.
        known: concepts that the base has learned.
        work: the work folder.
        folder: where the archive goes.

    Returns:
        Path of the archive.
    """
    names, images = sets.load(style, work)
    image_by_name = dict(zip(names, images, strict=True))
    files: dict[str, bytes] = {}
    for split, chosen in choose(names, known).items():
        lines = []
        for name in track(chosen, f"{style.name} {split}"):
            suffix, content = encode(image_by_name[name])
            files[f"{split}/{name}{suffix}"] = content
            lines.append(json.dumps({"file_name": name + suffix, "text": sets.caption_of(name)}) + "\n")
        files[f"{split}/metadata.jsonl"] = "".join(lines).encode()
    target = folder / f"{style.name}.zip"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".tmp")
    with zipfile.ZipFile(unfinished, "w") as archive:
        for path, content in sorted(files.items()):
            info = zipfile.ZipInfo(path, _LONG_AGO)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if path.endswith(".jsonl") else zipfile.ZIP_STORED
            archive.writestr(info, content)
    unfinished.replace(target)
    return target


def main() -> None:
    """Pack every style of the table and report the sizes."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder")
    parser.add_argument("--output", type=Path, default=Path("src/fera/demo/styles"), help="where the archives go")
    args = parser.parse_args()
    known = set(base_concepts(args.work))
    for style in sets.STYLES:
        archive = pack(style, known, args.work, args.output)
        counts = {split: len(names) for split, names in choose(sets.load(style, args.work)[0], known).items()}
        print(f"{archive}: {archive.stat().st_size / 1e6:.2f} MB, {counts}")


if __name__ == "__main__":
    main()
