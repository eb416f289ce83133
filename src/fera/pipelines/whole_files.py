"""Checkpoints of whole pipelines: parts of them that diffusers is not left to find."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    is_clip_model_in_single_file,
    is_t5_in_single_file,
    load_single_file_checkpoint,
)
from safetensors import SafetensorError, safe_open

from fera.errors import FeraError
from fera.pipelines.denoiser_files import load_denoiser
from fera.pipelines.file_parts import bundled_tokenizers, what_to_name
from fera.pipelines.file_shapes import GGUF

# Beginnings of the names of parts that only a checkpoint of a whole pipeline has.
_WHOLE = ("first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "text_encoders.")


def is_whole(file: Path) -> bool:
    """Whether a file is a checkpoint of a whole pipeline.

    Raises:
        FeraError: it cannot be read.
    """
    if file.suffix == GGUF:
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            return any(key.startswith(_WHOLE) for key in opened.keys())
    except (SafetensorError, OSError) as error:
        raise FeraError(f"it cannot be read: {error}") from error


def whole_parts(
    file: Path,
    config: str,
    parts: Mapping[str, Any],
    dtype: torch.dtype | dict[str, torch.dtype],
    given: Collection[str],
    *,
    is_bundled: bool,
    model: str,
) -> dict[str, Any]:
    """Load parts of a checkpoint, and those that it lacks from where its configuration is.

    Args:
        file: the checkpoint.
        config: folder or Hub id of the pipeline whose configuration it has.
        parts: of the pipeline by name: library and class.
        dtype: as `load_base` takes it.
        given: names of parts from other files.
        is_bundled: whether the configuration comes with fera.
        model: what to call it.

    Returns:
        Parts by name, without the given ones.

    Raises:
        FeraError: a part is in neither.
    """
    checkpoint = load_single_file_checkpoint(str(file), local_files_only=True)
    rest = {name: value for name, value in parts.items() if name not in given}
    absent = [name for name, value in rest.items() if value[0] == "transformers" and _is_absent(value[1], checkpoint)]
    found: dict[str, Any] = {}
    if is_bundled:
        # Stable Diffusion 3 does without T5; what has neither encoder nor tokenizer is none of these.
        is_optional = absent == ["text_encoder_3"] and "tokenizer_3" in rest
        lacking = [*absent, *(["tokenizer_3"] if "tokenizer_3" in rest else [])]
        if is_optional:
            found = {"text_encoder_3": None, "tokenizer_3": None}
        elif lacking:
            raise FeraError(
                f"neither in the file nor with fera: {what_to_name(lacking, parts)}. Name it behind the file and '|', "
                "or a pipeline's folder or Hub id that has it all"
            )
        found |= bundled_tokenizers(parts, given)
    else:
        words = [
            name
            for name, value in rest.items()
            if value[0] == "transformers" and name not in absent and not _is_model(value[1])
        ]
        _check_there(config, [*absent, *words])
    for name, (library, class_name) in rest.items():
        if name in found:
            continue
        if hasattr(getattr(diffusers, class_name, None), "from_single_file"):
            found[name] = load_denoiser(file, config, name, class_name, _of(dtype, name), model)
        elif library == "transformers" and name in absent:
            cls: Any = getattr(transformers, class_name)
            found[name] = cls.from_pretrained(config, subfolder=name, dtype=_of(dtype, name))
    return found


def _check_there(config: str, names: Sequence[str]) -> None:
    """Refuse a folder without a part; what a Hub id has, its client says."""
    folder = Path(config)
    absent = [name for name in names if not any((folder / name).glob("*"))]
    if folder.is_dir() and absent:
        verb = "is" if len(absent) == 1 else "are"
        raise FeraError(
            f"{', '.join(absent)} {verb} not in {folder}, and the file holds none: name a pipeline that has it all, "
            "FILE|FOLDER or FILE|HUB ID"
        )


def _is_model(class_name: str) -> bool:
    cls = getattr(transformers, class_name)
    return isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)


def _is_absent(class_name: str, checkpoint: Any) -> bool:
    """Whether a class is a text encoder that diffusers does not find in a checkpoint."""
    cls = getattr(transformers, class_name)
    if not _is_model(class_name):
        return False
    if cls.__name__.startswith("CLIP"):
        return not is_clip_model_in_single_file(cls, checkpoint)
    return not (cls.__name__.startswith("T5") and is_t5_in_single_file(checkpoint))


def _of(dtype: torch.dtype | dict[str, torch.dtype], name: str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
