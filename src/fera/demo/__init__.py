"""The emoji base, a small text-to-image model that comes with the library, and styles to fine-tune it on.

`base_path()` is a folder that `StableDiffusionPipeline.from_pretrained` loads. `unpack_style` writes the
pictures of a style as an imagefolder, split into train, validation and test by concept. How both were made,
what the base can do and whom to credit: `docs/base.md`, and `LICENSES.md` beside this file.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from fera.errors import FeraError

__all__ = ["STYLES", "base_path", "unpack_style"]

_HERE = Path(__file__).resolve().parent

STYLES: tuple[str, ...] = tuple(sorted(path.stem for path in (_HERE / "styles").glob("*.zip")))
"""Names of the styles, sorted."""


def base_path() -> Path:
    """Return the folder of the emoji base.

    Returns:
        A folder in diffusers' format, for `StableDiffusionPipeline.from_pretrained`. It draws 64x64 pixels.

    Raises:
        FeraError: the installation lacks the base.
    """
    folder = _HERE / "base"
    if not (folder / "model_index.json").is_file():
        raise FeraError(f"the emoji base is missing: there is no {folder / 'model_index.json'}")
    return folder


def unpack_style(name: str, folder: str | Path) -> Path:
    """Write the pictures of a style to a folder, as `train/`, `validation/` and `test/`.

    Each of the three is an imagefolder: 64x64 RGB pictures and a `metadata.jsonl` whose lines hold
    `file_name` and `text`. A concept is in the same split in every style. Splits that are there already are
    left as they are, so calling this again is cheap.

    Args:
        name: one of `STYLES`.
        folder: where the three splits go; made when it is missing.

    Returns:
        The folder.

    Raises:
        FeraError: there is no such style, or `folder` is a file.
    """
    if name not in STYLES:
        raise FeraError(f"there is no style {name!r}; there are {', '.join(STYLES)}")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise FeraError(f"cannot unpack style {name!r} to {target}: it is a file")
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(_HERE / "styles" / f"{name}.zip") as archive:
        # A split appears under its name only once it is complete, whatever interrupts this.
        with tempfile.TemporaryDirectory(dir=target, prefix=".unpacking-") as unfinished:
            for split in sorted({member.split("/")[0] for member in archive.namelist()}):
                if not (target / split).exists():
                    archive.extractall(unfinished, [m for m in archive.namelist() if m.startswith(f"{split}/")])
                    shutil.move(Path(unfinished, split), target / split)
    return target
