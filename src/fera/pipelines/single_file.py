"""Bases in files: a checkpoint of all parts, or a denoiser and other parts beside it, as they are passed around.

diffusers turns the original names of layers into its own. What it cannot tell from files, the configuration and the
parts that they lack, comes from a pipeline's folder or Hub id, or from the configurations that come with fera.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

from fera.errors import FeraError
from fera.models.registry import known
from fera.pipelines.denoiser_files import load_denoiser
from fera.pipelines.file_parts import (
    bundled_tokenizers,
    is_tokenizer,
    load_pieces,
    pieces_of,
    placed_pieces,
    what_to_name,
)
from fera.pipelines.file_shapes import GGUF, PREFIX, kind_of, shapes_of
from fera.pipelines.scaled_weights import check_scales
from fera.pipelines.whole_files import is_whole, whole_parts

# Between files, and where their configuration comes from.
SEPARATOR = "|"
# Between where a base is and the class of its pipeline, where it is not the one that it was saved as.
CLASS_MARK = "#"
_ENDINGS = (".safetensors", GGUF)
_CONFIGURATIONS = Path(__file__).parent / "configurations"
# What diffusers takes a file for that it does not know, and a weight of what it then must be.
_LAST_RESORT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_UNET_INPUT = f"{PREFIX}input_blocks.0.0.weight"
# Models whose parts differ by the denoiser's shapes alone.
_SAME = dict.fromkeys(
    ("stabilityai/stable-diffusion-3-medium-diffusers", "stabilityai/stable-diffusion-3.5-medium"),
    "stabilityai/stable-diffusion-3.5-large",
)
# What names of Wan 2.2's files say.
_NOISE = re.compile(r"(low|high).?noise")
# Parts that Stable Diffusion 3 does without.
_OPTIONAL = ("text_encoder_3", "tokenizer_3")


@dataclass(frozen=True)
class SingleFile:
    """A base in one file, or in several.

    Args:
        file: a safetensors or GGUF file: of a checkpoint, or of the first denoiser.
        config: folder or Hub id of the pipeline whose configuration it has; None: as the files themselves say.
        others: files of further parts.
        tokenizers: folders of tokenizers.
        pipeline: class of the pipeline; None: that of the configuration.
    """

    file: Path
    config: str | None
    others: tuple[Path, ...] = ()
    tokenizers: tuple[Path, ...] = ()
    pipeline: str | None = None


def single_file(base: str) -> SingleFile | None:
    """The files that a base names, and their configuration; None where it names none.

    Args:
        base: "FILE", "FILE|CONFIG", or "FILE|FILE|...", with a folder of a tokenizer and a CONFIG among the others;
            and "#CLASS" behind it all for another class of pipeline.

    Raises:
        FeraError: a file is missing or none that is read, or the configuration is named in vain or twice.
    """
    place, pipeline = named_class(base)
    name, separator, rest = place.partition(SEPARATOR)
    file = Path(name)
    if not separator and not file.is_file():
        return None
    others: list[Path] = []
    tokenizers: list[Path] = []
    configs: list[str] = []
    for piece in rest.split(SEPARATOR) if separator else ():
        if Path(piece).is_file() or piece.endswith(_ENDINGS):
            others.append(Path(piece))
        elif Path(piece).is_dir() and is_tokenizer(Path(piece)):
            tokenizers.append(Path(piece))
        else:
            configs.append(piece)
    if twice := [each for each, times in Counter((file, *others)).items() if times > 1]:
        raise FeraError(f"base {base}: {twice[0]} is named twice")
    for each in (file, *others):
        if not each.is_file():
            order = "; the denoiser's file comes first, a folder behind it" if each.is_dir() else ""
            raise FeraError(f"base {each} is no file (looked from {Path.cwd()}){order}")
        if each.suffix not in _ENDINGS:
            raise FeraError(
                f"base {each}: of files, only .safetensors and .gguf are read; pickles (.ckpt, .pt) can run code"
            )
    if "" in configs:
        raise FeraError(
            f"base {base}: name a file, or a pipeline's folder or Hub id behind {SEPARATOR!r}, or leave it out"
        )
    if len(configs) > 1:
        raise FeraError(
            f"base {base}: {' and '.join(configs)} are neither files nor tokenizers; one pipeline's folder or Hub id "
            "can stand beside files"
        )
    return SingleFile(file, configs[0] if configs else None, tuple(others), tuple(tokenizers), pipeline)


def named_class(base: str) -> tuple[str, str | None]:
    """A base without the class of its pipeline, and the class where one stands behind "#".

    Raises:
        FeraError: diffusers has no pipeline of that class.
    """
    place, mark, name = base.rpartition(CLASS_MARK)
    if not mark or Path(base).exists():
        return base, None
    cls = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise FeraError(f"base {base!r}: diffusers {diffusers.__version__} has no pipeline {name!r}, which is behind #")
    return place, name


def guessed_config(base: SingleFile) -> str:
    """Where the configuration of files comes from that name none: a folder that comes with fera, or a Hub id.

    Raises:
        FeraError: nothing in them says what they are. diffusers raises other errors.
    """
    shapes = shapes_of(base.file)
    if not is_whole(base.file) and (kind := kind_of(shapes)):
        name = kind.published(shapes, 1 + len(pieces_of(base.others, ()).denoisers))
    elif base.file.suffix == GGUF:
        raise FeraError(f"its weights are of no model known here; name its pipeline: {base.file}{SEPARATOR}FOLDER")
    else:
        checkpoint = load_single_file_checkpoint(str(base.file), local_files_only=True)
        name = str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])
        if name == _LAST_RESORT and _UNET_INPUT not in checkpoint:
            raise FeraError(f"its weights are of no model known here; name its pipeline: {base.file}{SEPARATOR}FOLDER")
    folder = _CONFIGURATIONS / _SAME.get(name, name)
    return str(folder) if folder.is_dir() else name


def model_of(config: str) -> str:
    """What to call a configuration: the Hub id that it is of, or the name that it was given by."""
    folder = Path(config)
    return folder.relative_to(_CONFIGURATIONS).as_posix() if _CONFIGURATIONS in folder.parents else config


def lacking_parts(file: Path) -> str:
    """The end of a message: what has to be in the folder beside a file of a denoiser; nothing for other files."""
    kind = None if is_whole(file) else kind_of(shapes_of(file))
    if kind is None:
        return ""
    return f". The file holds the denoiser of {kind.name} alone: VAE, text encoder and tokenizer come from there"


def load_single_file(base: SingleFile, config: str, dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """Load the pipeline of files.

    Args:
        base: the files.
        config: folder or Hub id of the pipeline whose configuration they have.
        dtype: as `load_base` takes it.

    Returns:
        The pipeline, on the CPU.

    Raises:
        FeraError: a file cannot be read, has no place in the pipeline, a part is neither in one nor there, or fera
            knows no denoiser in such a pipeline. diffusers raises other errors.
    """
    index = DiffusionPipeline.load_config(config)
    parts = {name: value for name, value in index.items() if isinstance(value, list | tuple) and value[-1] is not None}
    denoisers = [name for name, value in parts.items() if value[-1] in known()]
    if not denoisers:
        raise FeraError(f"fera knows no denoiser in a {index.get('_class_name')}, of {config}")
    is_bundled = model_of(config) != config
    pieces = pieces_of(base.others, base.tokenizers)
    placed = placed_pieces(pieces, parts)
    whole = is_whole(base.file)
    files = dict(zip(denoisers, _in_order(base, pieces.denoisers, len(denoisers), whole=whole), strict=False))
    for file in files.values():
        check_scales(file, is_whole=whole)
    pipeline = _class_of(base, index, is_bundled=is_bundled and not whole)
    absent: dict[str, None] = {}
    if not whole:
        absent = _check_all(config, parts, {*files, *placed.names}, is_bundled=is_bundled)
    given = load_pieces(placed, parts, config, dtype) | absent
    if whole:
        given |= whole_parts(base.file, config, parts, dtype, given, is_bundled=is_bundled, model=model_of(config))
        return pipeline.from_single_file(str(base.file), config=config, torch_dtype=_of(dtype, ""), **given)
    for name, file in files.items():
        given[name] = load_denoiser(file, config, name, parts[name][-1], _of(dtype, name), model_of(config))
    if is_bundled:
        given |= bundled_tokenizers(parts, given)
        template = Path(config) / "tokenizer" / "chat_template.jinja"
        if template.is_file():
            given["tokenizer"].chat_template = template.read_text(encoding="utf-8")
    # Of its own class: DiffusionPipeline overlooks optional parts (Wan's denoisers) that it is given.
    return pipeline.from_pretrained(config, dtype=dtype, use_safetensors=True, **given)


def _in_order(base: SingleFile, others: Collection[Path], places: int, *, whole: bool) -> list[Path]:
    """Files of denoisers in the order of a pipeline's."""
    if whole and others:
        raise FeraError(f"{min(others).name} holds a denoiser, and {base.file.name} is a checkpoint that has one")
    files = [base.file, *others]
    if len(files) > places:
        raise FeraError(
            f"{len(files)} files hold a denoiser, and the pipeline has {places}: {', '.join(map(str, files))}"
        )
    if len(files) > 1 and [_NOISE.findall(file.name.lower())[:1] for file in files] == [["low"], ["high"]]:
        raise FeraError(f"name the denoiser of high noise first: {files[1]}{SEPARATOR}{files[0]}")
    return files


def _class_of(base: SingleFile, index: Mapping[str, Any], *, is_bundled: bool) -> Any:
    """The class of a pipeline: that which was asked for, that which shapes tell, or the configuration's."""
    name = base.pipeline
    if name is None and is_bundled and (kind := kind_of(shapes := shapes_of(base.file))):
        name = kind.pipeline(shapes)
    return getattr(diffusers, name or str(index["_class_name"]))


def _check_all(config: str, parts: Mapping[str, Any], given: set[str], *, is_bundled: bool) -> dict[str, None]:
    """Refuse what lacks a part, before any is loaded; those that the pipeline does without, as None."""
    if not is_bundled:
        folder = Path(config)
        lacking = [name for name in parts if name not in given and not any((folder / name).glob("*"))]
        if folder.is_dir() and lacking:
            verb = "is" if len(lacking) == 1 else "are"
            raise FeraError(
                f"{', '.join(lacking)} {verb} not in {folder}, and the file holds a denoiser alone: name a pipeline "
                f"that has it all, FILE{SEPARATOR}FOLDER or FILE{SEPARATOR}HUB ID, or its file beside the others"
            )
        return {}
    lacking = [
        name for name, value in parts.items() if name not in {*given, "scheduler"} and value[1] != "CLIPTokenizer"
    ]
    absent = dict.fromkeys(_OPTIONAL) if {*_OPTIONAL} <= {*lacking} else {}
    if lacking := [name for name in lacking if name not in absent]:
        raise FeraError(
            f"the files hold no {what_to_name(lacking, parts)}. Name what is missing behind {SEPARATOR!r}, or a "
            "pipeline's folder that has it"
        )
    return absent


def _of(dtype: torch.dtype | dict[str, torch.dtype], name: str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
