"""Denoisers without weights: their layers, read off a configuration."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from fera.demo import base_path
from fera.errors import FeraError
from fera.models.registry import known
from fera.pipelines.base import EMOJI, loading, parted, read_index
from fera.pipelines.file_parts import pieces_of
from fera.pipelines.file_shapes import kind_of, shapes_of
from fera.pipelines.single_file import CLASS_MARK, SingleFile, guessed_config, single_file


def skeletons(base: str, *, revision: str | None = None) -> dict[str, nn.Module]:
    """The denoisers of a pipeline as its configuration describes them, on the meta device.

    Args:
        base: a folder as `save_pretrained` writes it, a Hub id, a file as `load_base` takes it, or "emoji" for the
            base that comes with fera. Of files, shapes say what the configuration does not.
        revision: branch, tag or commit, for a Hub id.

    Returns:
        By component name; no weights are read, nor fetched.

    Raises:
        FeraError: nothing is there, it cannot be read, or fera knows none of its components as a denoiser.
    """
    base = str(base_path()) if base == EMOJI else base
    if (alone := single_file(base)) is not None:
        try:
            with loading(base):
                if shaped := _of_files(alone):
                    return shaped
                base = alone.config or guessed_config(alone)
        except FeraError as error:
            raise FeraError(f"base {alone.file}: {error}") from error
    index = read_index(base, revision=revision)
    base, _ = parted(base)
    found = {}
    for name, value in index.items():
        if isinstance(value, list | tuple) and value[-1] in known():
            cls: Any = _class(value[-1])
            with loading(base), torch.device("meta"):
                # A folder as it stands; of a Hub id, the file of the configuration alone.
                config = cls.load_config(base, subfolder=name, revision=revision)
                found[name] = cls.from_config(config)
    if not found:
        raise FeraError(
            f"base {base}: fera knows no denoiser in a {index.get('_class_name')}; `fera models` lists them"
        )
    return found


def _of_files(base: SingleFile) -> dict[str, nn.Module]:
    """The denoisers of files whose shapes say what they are, whatever configuration there is; none of others."""
    found: dict[str, nn.Module] = {}
    for file in (base.file, *pieces_of(base.others, ()).denoisers):
        shapes = shapes_of(file)
        if (kind := kind_of(shapes)) is None:
            return {}
        name = "transformer" if not found else f"transformer_{len(found) + 1}"
        cls: Any = _class(kind.class_name)
        folder = Path(base.config or "") / name
        known_before = dict(cls.load_config(folder)) if base.config and (folder / "config.json").is_file() else {}
        with torch.device("meta"):
            found[name] = cls.from_config({**known_before, **kind.settings(shapes, known_before)})
    return found


def skeleton(name: str) -> nn.Module:
    """A denoiser of a class with the settings that are its defaults in diffusers, on the meta device.

    For most classes these are the settings of the model that it was written for.

    Args:
        name: name of a class that fera knows.

    Raises:
        FeraError: diffusers has no such class, or its defaults make no model.
    """
    cls = _class(name)
    try:
        with torch.device("meta"):
            return cls()
    except (TypeError, ValueError) as error:
        raise FeraError(f"the defaults of {name} make no whole model; name a base instead: fera models PATH") from error


def _class(name: str) -> Any:
    found = getattr(diffusers, name, None)
    if found is None:
        raise FeraError(f"diffusers {diffusers.__version__} has no {name}")
    return found


def is_base(text: str) -> bool:
    """Whether a text names a base, not a class: "emoji", a folder or file that exists, or what looks like a Hub id."""
    return text == EMOJI or "/" in text or "|" in text or CLASS_MARK in text or Path(text).exists()
