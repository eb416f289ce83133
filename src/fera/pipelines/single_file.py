"""Bases in one file: a checkpoint of all parts, or a denoiser alone, as they are passed around.

diffusers turns the original names of layers into its own. What it cannot tell from a file, the configuration and the
parts that the file lacks, comes from a pipeline's folder or Hub id.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, GGUFQuantizationConfig
from diffusers.loaders.single_file_utils import (
    fetch_diffusers_config,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
    load_single_file_checkpoint,
)
from safetensors import SafetensorError, safe_open

from fera.errors import FeraError
from fera.models.registry import known
from fera.pipelines.frozen_linear import hold_gguf
from fera.pipelines.scaled_weights import check_scales, has_scales, unscaled

# Between a file and where its configuration comes from.
SEPARATOR = "|"
GGUF = ".gguf"
# Beginnings of the names of parts that only a checkpoint of a whole pipeline has.
_WHOLE = ("first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "text_encoders.")


@dataclass(frozen=True)
class SingleFile:
    """A base in one file.

    Args:
        file: a safetensors or GGUF file.
        config: folder or Hub id of the pipeline whose configuration it has; None: as diffusers guesses from the file.
    """

    file: Path
    config: str | None


def single_file(base: str) -> SingleFile | None:
    """The file that a base names, and its configuration: "FILE" or "FILE|CONFIG"; None where it names none.

    Raises:
        FeraError: the file is missing or no safetensors file, or the configuration is named in vain.
    """
    name, separator, config = base.partition(SEPARATOR)
    file = Path(name)
    if not separator and not file.is_file():
        return None
    if not file.is_file():
        raise FeraError(f"base {name} is no file (looked from {Path.cwd()})")
    if file.suffix not in (".safetensors", GGUF):
        raise FeraError(
            f"base {file}: of files, only .safetensors and .gguf are read; pickles (.ckpt, .pt) can run code"
        )
    if file.suffix == GGUF and not config:
        raise FeraError(
            f"base {file}: a GGUF file holds a denoiser alone; name the pipeline's folder or Hub id that has the other "
            f"parts: {file}{SEPARATOR}FOLDER"
        )
    if separator and not config:
        raise FeraError(f"base {base}: name a pipeline's folder or Hub id behind {SEPARATOR!r}, or leave it out")
    return SingleFile(file, config or None)


def guessed_config(file: Path) -> str:
    """The Hub id whose configuration diffusers takes for a file."""
    checkpoint = load_single_file_checkpoint(str(file), local_files_only=True)
    return str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])


def load_single_file(base: SingleFile, config: str, dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """Load the pipeline of a file.

    Args:
        base: the file.
        config: folder or Hub id of the pipeline whose configuration it has.
        dtype: as `load_base` takes it.

    Returns:
        The pipeline, on the CPU.

    Raises:
        FeraError: the file cannot be read, or fera knows no denoiser in such a pipeline. diffusers raises other errors.
    """
    is_whole = base.file.suffix != GGUF and _is_whole(base.file)
    check_scales(base.file, is_whole=is_whole)
    index = DiffusionPipeline.load_config(config)
    parts = {name: value for name, value in index.items() if isinstance(value, list | tuple) and value[-1] is not None}
    if not any(value[-1] in known() for value in parts.values()):
        raise FeraError(f"fera knows no denoiser in a {index.get('_class_name')}, of {config}")
    if not is_whole:
        name = next(name for name, value in parts.items() if value[-1] in known())
        denoiser = _from_file(base, config, name, parts[name][-1], dtype)
        return DiffusionPipeline.from_pretrained(config, dtype=dtype, use_safetensors=True, **{name: denoiser})
    checkpoint = load_single_file_checkpoint(str(base.file), local_files_only=True)
    given = {}
    for name, (library, class_name) in parts.items():
        if hasattr(getattr(diffusers, class_name, None), "from_single_file"):
            given[name] = _from_file(base, config, name, class_name, dtype)
        elif library == "transformers" and _is_absent(class_name, checkpoint):
            cls: Any = getattr(transformers, class_name)
            given[name] = cls.from_pretrained(config, subfolder=name, dtype=_of(dtype, name))
    pipeline: Any = getattr(diffusers, index["_class_name"])
    return pipeline.from_single_file(str(base.file), config=config, torch_dtype=_of(dtype, ""), **given)


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return any(key.startswith(_WHOLE) for key in opened.keys())
    except (SafetensorError, OSError) as error:
        raise FeraError(f"it cannot be read: {error}") from error


def _from_file(base: SingleFile, config: str, name: str, class_name: str, dtype: Any) -> Any:
    cls: Any = getattr(diffusers, class_name)
    if not hasattr(cls, "from_single_file"):
        raise FeraError(f"diffusers reads no single file into a {class_name}; convert it to a pipeline's folder")
    held, settings = _of(dtype, name), {}
    if base.file.suffix == GGUF:
        if find_spec("gguf") is None:
            raise FeraError("GGUF files need the package gguf: pip install 'fera[quantized]'")
        settings["quantization_config"] = GGUFQuantizationConfig(compute_dtype=held)
    source = unscaled(base.file, held) if has_scales(base.file) else str(base.file)
    try:
        model = cls.from_single_file(source, config=config, subfolder=name, torch_dtype=held, **settings).eval()
        if base.file.suffix == GGUF:
            hold_gguf(model, held)
        return model
    except NotImplementedError as error:  # of a weight that nothing was loaded into
        raise FeraError(f"it lacks weights of a {class_name} as {config} describes it") from error


def _is_absent(class_name: str, checkpoint: Any) -> bool:
    """Whether a class is a text encoder that diffusers does not find in a checkpoint."""
    cls = getattr(transformers, class_name)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        return False
    if cls.__name__.startswith("CLIP"):
        return not is_clip_model_in_single_file(cls, checkpoint)
    return not (cls.__name__.startswith("T5") and is_t5_in_single_file(checkpoint))


def _of(dtype: torch.dtype | dict[str, torch.dtype], name: str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
