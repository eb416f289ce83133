"""Bases in one file: a checkpoint of all parts, or a denoiser alone, as they are passed around.

diffusers turns the original names of layers into its own. What it cannot tell from a file, the configuration and the
parts that the file lacks, comes from a pipeline's folder or Hub id, or from the configurations that come with fera.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
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
from safetensors.torch import load_file

from fera.errors import FeraError
from fera.models.registry import known
from fera.pipelines.clip_words import clip_tokenizer
from fera.pipelines.file_shapes import PREFIX, FileKind, Shapes, kind_of, shapes_of
from fera.pipelines.frozen_linear import hold_gguf
from fera.pipelines.scaled_weights import check_scales, has_scales, unscaled

# Between a file and where its configuration comes from.
SEPARATOR = "|"
GGUF = ".gguf"
_CONFIGURATIONS = Path(__file__).parent / "configurations"
# What diffusers takes a file for that it does not know, and a weight of what it then must be.
_LAST_RESORT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_UNET_INPUT = f"{PREFIX}input_blocks.0.0.weight"
# Models whose parts differ by the denoiser's shapes alone.
_SAME = dict.fromkeys(
    ("stabilityai/stable-diffusion-3-medium-diffusers", "stabilityai/stable-diffusion-3.5-medium"),
    "stabilityai/stable-diffusion-3.5-large",
)
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
    """Where the configuration of a file comes from that names none: a folder that comes with fera, or a Hub id.

    Raises:
        FeraError: nothing in the file says what it is. diffusers raises other errors.
    """
    if not _is_whole(file) and (kind := kind_of(shapes_of(file))):
        return kind.published
    checkpoint = load_single_file_checkpoint(str(file), local_files_only=True)
    name = str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])
    if name == _LAST_RESORT and _UNET_INPUT not in checkpoint:
        raise FeraError(f"its weights are of no model known here; name its pipeline: {file}{SEPARATOR}FOLDER")
    folder = _CONFIGURATIONS / _SAME.get(name, name)
    return str(folder) if folder.is_dir() else name


def model_of(config: str) -> str:
    """What to call a configuration: the Hub id that it is of, or the name that it was given by."""
    folder = Path(config)
    return folder.relative_to(_CONFIGURATIONS).as_posix() if _CONFIGURATIONS in folder.parents else config


def lacking_parts(file: Path) -> str:
    """The end of a message: what has to be in the folder beside a file of a denoiser; nothing for other files."""
    kind = None if file.suffix == GGUF or _is_whole(file) else kind_of(shapes_of(file))
    if kind is None:
        return ""
    return f". The file holds the denoiser of {kind.name} alone: VAE, text encoder and tokenizer come from there"


def load_single_file(base: SingleFile, config: str, dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """Load the pipeline of a file.

    Args:
        base: the file.
        config: folder or Hub id of the pipeline whose configuration it has.
        dtype: as `load_base` takes it.

    Returns:
        The pipeline, on the CPU.

    Raises:
        FeraError: the file cannot be read, a part is neither in it nor there, or fera knows no denoiser in such a
            pipeline. diffusers raises other errors.
    """
    is_whole = base.file.suffix != GGUF and _is_whole(base.file)
    check_scales(base.file, is_whole=is_whole)
    index = DiffusionPipeline.load_config(config)
    parts = {name: value for name, value in index.items() if isinstance(value, list | tuple) and value[-1] is not None}
    if not any(value[-1] in known() for value in parts.values()):
        raise FeraError(f"fera knows no denoiser in a {index.get('_class_name')}, of {config}")
    pipeline: Any = getattr(diffusers, index["_class_name"])
    if not is_whole:
        name = next(name for name, value in parts.items() if value[-1] in known())
        _check_there(config, [part for part in parts if part != name], "the file holds a denoiser alone")
        denoiser = _from_file(base, config, name, parts[name][-1], dtype)
        # Of its own class: DiffusionPipeline overlooks optional parts (Wan's denoisers) that it is given.
        return pipeline.from_pretrained(config, dtype=dtype, use_safetensors=True, **{name: denoiser})
    given = _given_parts(base, config, parts, dtype)
    return pipeline.from_single_file(str(base.file), config=config, torch_dtype=_of(dtype, ""), **given)


def _given_parts(base: SingleFile, config: str, parts: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Parts of a whole checkpoint that diffusers is not left to find."""
    checkpoint = load_single_file_checkpoint(str(base.file), local_files_only=True)
    is_bundled = model_of(config) != config
    absent = [name for name, value in parts.items() if value[0] == "transformers" and _is_absent(value[1], checkpoint)]
    given: dict[str, Any] = {}
    if is_bundled:
        # Stable Diffusion 3 does without T5; what has neither encoder nor tokenizer is none of these.
        is_optional = absent == ["text_encoder_3"]
        tokenizer = "tokenizer_3" in parts and not is_optional
        lacking = [*([] if is_optional else absent), *(["tokenizer_3"] if tokenizer else [])]
        if lacking:
            raise FeraError(_lacking(", ".join(lacking), "neither in the file nor with fera"))
        given |= {"text_encoder_3": None, "tokenizer_3": None} if is_optional else {}
    else:
        held = [name for name, value in parts.items() if value[0] == "transformers" and name not in absent]
        words = [name for name in held if not _is_model(parts[name][1])]
        _check_there(config, [*absent, *words], "the file holds none")
    for name, (library, class_name) in parts.items():
        if name in given:
            continue
        if hasattr(getattr(diffusers, class_name, None), "from_single_file"):
            given[name] = _from_file(base, config, name, class_name, dtype)
        elif is_bundled and class_name == "CLIPTokenizer":
            given[name] = clip_tokenizer("!") if name == "tokenizer_2" else clip_tokenizer()
        elif library == "transformers" and name in absent:
            cls: Any = getattr(transformers, class_name)
            given[name] = cls.from_pretrained(config, subfolder=name, dtype=_of(dtype, name))
    return given


def _check_there(config: str, parts: list[str], reason: str) -> None:
    """Refuse a folder without a part; what a Hub id has, its client says."""
    folder = Path(config)
    absent = [name for name in parts if not any((folder / name).glob("*"))]
    if folder.is_dir() and absent:
        raise FeraError(_lacking(", ".join(absent), f"not in {folder}, and {reason}"))


def _lacking(parts: str, where: str) -> str:
    verb = "are" if "," in parts else "is"
    return f"{parts} {verb} {where}: name a pipeline that has it all, FILE{SEPARATOR}FOLDER or FILE{SEPARATOR}HUB ID"


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
    with TemporaryDirectory() as folder:
        place = _with_shapes(base.file, config, name, class_name, Path(folder))
        try:
            model = cls.from_single_file(
                _weights(base.file, held), config=place, subfolder=name, torch_dtype=held, **settings
            ).eval()
        except NotImplementedError as error:  # of a weight that nothing was loaded into
            raise FeraError(f"it lacks weights of a {class_name} as {model_of(config)} describes it") from error
    if base.file.suffix == GGUF:
        hold_gguf(model, held)
    return model


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


def _with_shapes(file: Path, config: str, name: str, class_name: str, folder: Path) -> str:
    """Where a denoiser's configuration is: corrected by what the file's shapes say, in a folder for that, if they do.

    Raises:
        FeraError: the file holds the denoiser of another model.
    """
    shapes: Shapes = {} if file.suffix == GGUF else shapes_of(file)
    kind: FileKind | None = kind_of(shapes)
    if kind is None or class_name not in known():
        return config
    if kind.class_name != class_name:
        if kind.name == "Wan":  # whose names others have too
            return config
        raise FeraError(
            f"it holds the denoiser of {kind.name}, and {model_of(config)} is a pipeline with a {class_name}"
        )
    cls: Any = getattr(diffusers, class_name)
    has_none = Path(config).is_dir() and not (Path(config) / name / "config.json").is_file()
    settings = {} if has_none else dict(cls.load_config(config, subfolder=name))
    (folder / name).mkdir()
    settings |= {"_class_name": class_name, **kind.settings(shapes, settings)}
    (folder / name / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


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
