"""The denoiser of a file: its configuration corrected by the file's shapes, its weights under diffusers' names."""

import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import GGUFQuantizationConfig
from safetensors.torch import load_file

from fera.errors import FeraError
from fera.models.registry import known
from fera.pipelines.file_shapes import GGUF, PREFIX, FileKind, Shapes, kind_of, shapes_of
from fera.pipelines.frozen_linear import hold_gguf
from fera.pipelines.scaled_weights import has_scales, unscaled


def load_denoiser(file: Path, config: str, name: str, class_name: str, dtype: torch.dtype, model: str) -> Any:
    """Load a part of a pipeline from a file that diffusers converts.

    Args:
        file: of the denoiser alone, or of a checkpoint that has the part.
        config: folder or Hub id of the pipeline whose configuration it has.
        name: of the part in the pipeline.
        class_name: of the part.
        dtype: of its weights.
        model: what to call the configuration.

    Raises:
        FeraError: it lacks weights, is of another model, or diffusers does not convert such files. diffusers raises
            other errors.
    """
    cls: Any = getattr(diffusers, class_name)
    if not hasattr(cls, "from_single_file"):
        raise FeraError(f"diffusers reads no single file into a {class_name}; convert it to a pipeline's folder")
    settings = {}
    if file.suffix == GGUF:
        if find_spec("gguf") is None:
            raise FeraError("GGUF files need the package gguf: pip install 'fera[quantized]'")
        settings["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    with TemporaryDirectory() as folder:
        place = config
        if class_name in known() and (said := denoiser_settings(file, config, name, class_name, model)) is not None:
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(said), encoding="utf-8")
            place = folder
        try:
            found = cls.from_single_file(
                _weights(file, dtype), config=place, subfolder=name, torch_dtype=dtype, **settings
            ).eval()
        except NotImplementedError as error:  # of a weight that nothing was loaded into
            raise FeraError(f"it lacks weights of a {class_name} as {model} describes it") from error
    if file.suffix == GGUF:
        hold_gguf(found, dtype)
    return found


def denoiser_settings(file: Path, config: str, name: str, class_name: str, model: str) -> dict[str, Any] | None:
    """The settings of the denoiser in a file, as far as its shapes say; None where they say nothing.

    Args:
        file: the file.
        config: folder or Hub id that has the others; one without the denoiser's folder leaves them at their defaults.
        name: of the denoiser in the pipeline.
        class_name: of the denoiser.
        model: what to call the configuration.

    Raises:
        FeraError: the file holds the denoiser of another model.
    """
    shapes: Shapes = shapes_of(file)
    kind: FileKind | None = kind_of(shapes)
    if kind is None:
        return None
    if kind.class_name != class_name:
        if kind.name == "Wan":  # whose names others have too
            return None
        raise FeraError(f"it holds the denoiser of {kind.name}, and {model} is a pipeline with a {class_name}")
    cls: Any = getattr(diffusers, class_name)
    has_none = Path(config).is_dir() and not (Path(config) / name / "config.json").is_file()
    settings = {} if has_none else dict(cls.load_config(config, subfolder=name))
    return {**settings, "_class_name": class_name, **kind.settings(shapes, settings)}


def _weights(file: Path, dtype: torch.dtype) -> Any:
    """What diffusers is given of a file: its path, or its weights under names that diffusers knows."""
    if has_scales(file):
        weights = unscaled(file, dtype)
    elif (
        file.suffix != GGUF and (kind := kind_of(shapes_of(file))) and kind.class_name == "QwenImageTransformer2DModel"
    ):
        weights = load_file(file)
    else:
        return str(file)
    if any(key.startswith(f"{PREFIX}transformer_blocks.") for key in weights):  # diffusers' own names under a prefix
        return {key.removeprefix(PREFIX): weight for key, weight in weights.items()}
    return weights
