"""The emoji sets: one table, and what turns a line of it into 64x64 pictures with captions.

`python scripts/emoji/sets.py` fetches every set of the table, renders it and writes
`build/emoji/sets/NAME.npz`. Another set is one more line of `SETS`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, Literal

import numpy as np
import resvg_py
from PIL import Image
from rich.progress import track

SIZE = 64  # side of a picture, pixels


@dataclass(frozen=True)
class EmojiSet:
    """One emoji set, published as the npm package `@iconify-json/<name>`.

    Attributes:
        name: the package's name without its scope.
        role: `base` is what the base model learns, `style` what adapters learn.
        version: the package's pinned version.
        licence: SPDX identifier of the artwork's licence.
        author: whom to credit.
        source: where the author publishes the artwork.
    """

    name: str
    role: Literal["base", "style"]
    version: str
    licence: str
    author: str
    source: str


SETS = (
    EmojiSet("noto", "base", "1.2.9", "Apache-2.0", "Google Inc", "github.com/googlefonts/noto-emoji"),
    EmojiSet("twemoji", "style", "1.2.5", "CC-BY-4.0", "Twitter", "github.com/jdecked/twemoji"),
    EmojiSet("openmoji", "style", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", "github.com/hfg-gmuend/openmoji"),
    EmojiSet("fluent-emoji-flat", "style", "1.2.6", "MIT", "Microsoft", "github.com/microsoft/fluentui-emoji"),
    EmojiSet(
        "fluent-emoji-high-contrast",
        "style",
        "1.2.6",
        "MIT",
        "Microsoft",
        "github.com/microsoft/fluentui-emoji",
    ),
    EmojiSet("noto-v1", "style", "1.2.5", "Apache-2.0", "Google Inc", "github.com/googlefonts/noto-emoji"),
    EmojiSet("emojione-v1", "style", "1.2.3", "CC-BY-SA-4.0", "Emoji One", "github.com/joypixels/emojione-legacy"),
)
BASE = next(entry for entry in SETS if entry.role == "base")
STYLES = tuple(entry for entry in SETS if entry.role == "style")
# Weights trained on share-alike pictures might have to carry that licence, so the base never sees them.
PERMISSIVE = tuple(entry for entry in SETS if not entry.licence.endswith("-SA-4.0"))

_UNWANTED = re.compile(r"(light|medium|dark)-skin-tone|^flag-|flag-for|regional-indicator")


def is_wanted(name: str) -> bool:
    """Tell whether an icon is kept: flags, regional indicators and skin-tone variants are not."""
    return not _UNWANTED.search(name)


def split_of(name: str) -> Literal["train", "validation", "test"]:
    """Split of a concept; it depends on the name alone, so that it is the same in every set."""
    bucket = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def caption_of(name: str) -> str:
    """Caption of a concept: `grinning-face` is captioned "grinning face"."""
    return name.replace("-", " ")


def fetch(entry: EmojiSet, folder: Path) -> Path:
    """Download the package of a set with npm, once.

    Args:
        entry: line of the table.
        folder: where the package's archive is kept.

    Returns:
        Path of the archive.
    """
    archive = folder / f"iconify-json-{entry.name}-{entry.version}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = f"@iconify-json/{entry.name}@{entry.version}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    return archive


def read_icons(archive: Path) -> dict[str, str]:
    """Read the wanted icons of a package.

    Args:
        archive: the npm archive of a set.

    Returns:
        SVG documents by name, sorted by name.
    """
    with tarfile.open(archive) as package:
        member = package.extractfile("package/icons.json")
        if member is None:
            raise FileNotFoundError(f"{archive} holds no package/icons.json")
        data: dict[str, Any] = json.load(member)
    documents = {}
    for name, icon in sorted(data["icons"].items()):
        if is_wanted(name):
            geometry = [{"left": 0, "top": 0, "width": 16, "height": 16}, data, icon]
            box = [next(g[key] for g in reversed(geometry) if key in g) for key in ("left", "top", "width", "height")]
            body = icon["body"].replace("currentColor", "#222")
            view = " ".join(map(str, box))
            documents[name] = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{view}" width="{SIZE}" height="{SIZE}">{body}</svg>'
            )
    return documents


def render(document: str, size: int = SIZE) -> np.ndarray:
    """Render an SVG document on white.

    Args:
        document: the SVG text.
        size: side of the picture, pixels.

    Returns:
        Shape (size, size, 3), uint8.
    """
    png = bytes(resvg_py.svg_to_bytes(svg_string=document, width=size, height=size))
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", drawing.size, "white")
    return np.asarray(Image.alpha_composite(page, drawing).convert("RGB").resize((size, size)))


def build(entry: EmojiSet, folder: Path) -> Path:
    """Render one set, once, into `folder/sets/NAME.npz` with arrays `names` and `images`."""
    target = folder / "sets" / f"{entry.name}.npz"
    if not target.exists():
        icons = read_icons(fetch(entry, folder / "npm"))
        with Pool() as pool:
            drawn = pool.imap(partial(render), icons.values(), chunksize=64)
            images = np.stack(list(track(drawn, f"rendering {entry.name}", total=len(icons))))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial_file = target.with_suffix(".tmp.npz")
        np.savez_compressed(partial_file, names=np.array(list(icons)), images=images)
        partial_file.replace(target)
    return target


def load(entry: EmojiSet, folder: Path) -> tuple[list[str], np.ndarray]:
    """Load a rendered set, rendering it first where it is missing.

    Args:
        entry: line of the table.
        folder: the work folder.

    Returns:
        Names of the N concepts, and their pictures of shape (N, 64, 64, 3), uint8.
    """
    with np.load(build(entry, folder)) as arrays:
        return arrays["names"].tolist(), arrays["images"]


def main() -> None:
    """Fetch and render every set of the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder (default: %(default)s)")
    work: Path = parser.parse_args().work
    for entry in SETS:
        names, _ = load(entry, work)
        splits = [split_of(name) for name in names]
        counts = ", ".join(f"{splits.count(part)} {part}" for part in ("train", "validation", "test"))
        print(f"{entry.name}: {len(names)} pictures ({counts}), {entry.licence}, {entry.author}")


if __name__ == "__main__":
    main()
