"""Opening a base: the diffusers pipeline that an adapter is for."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from fera.demo import base_path
from fera.errors import FeraError, reason_of
from fera.models.components import denoisers
from fera.pipelines.block_offload import move, offload_blocks
from fera.pipelines.modular_bases import is_modular, load_modular, modular_index
from fera.pipelines.quantization import quantize
from fera.pipelines.quantization_kinds import KINDS, check_quantization
from fera.pipelines.single_file import (
    SEPARATOR,
    SingleFile,
    guessed_config,
    lacking_parts,
    load_single_file,
    model_of,
    named_class,
    single_file,
)

# Name of the base that comes with fera.
EMOJI = "emoji"


def load_base(
    base: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | dict[str, torch.dtype] = torch.float32,
    given: Mapping[str, Any] | None = None,
    laid_out: bool = True,
) -> Any:
    """Load a diffusers pipeline.

    Args:
        base: a folder as `save_pretrained` writes it, of a modular pipeline too, a Hub id, one safetensors file, or
            "emoji" for the base that comes with fera. Behind a file may stand files of further parts, and where its
            configuration comes from: "FILE|FILE|FOLDER" or "FILE|HUB ID"; and behind all of it another class of
            pipeline: "HUB ID#CLASS".
        revision: branch, tag or commit, for a Hub id.
        variant: variant of the weight files, such as "fp16".
        dtype: the dtype of its weights in memory; a dict gives one to a part by name, and "default" to the others.
        given: parts by name that are not loaded, but these taken; not of files.
        laid_out: whether `lay_out` is done to the parts that are loaded.

    Returns:
        The pipeline, on the CPU.

    Raises:
        FeraError: nothing is there, it is no diffusers pipeline, or it cannot be read.
    """
    if base == EMOJI:
        pipe = load_base(str(base_path()), dtype=dtype, given=given, laid_out=laid_out)
        # What an adapter remembers of its base: the name means the same on every machine, the path does not.
        pipe.register_to_config(_name_or_path=EMOJI)
        return pipe
    if (alone := single_file(base)) is not None:
        pipe = _load_alone(base, alone, dtype)
        return _laid_out(pipe) if laid_out else pipe
    given = given or {}
    place, cls = parted(base)
    if is_modular(place):
        with loading(place):
            pipe = load_modular(place, None if cls is DiffusionPipeline else cls, dtype)
        pipe.register_to_config(_name_or_path=base)
        return _laid_out(pipe) if laid_out else pipe
    index = read_index(base, revision=revision)
    absent = _absent_parts(index)
    if given and cls is DiffusionPipeline:
        # Which takes no optional part that it is given (Wan's denoisers), but the folder's.
        cls = getattr(diffusers, str(index.get("_class_name")), DiffusionPipeline)
    with loading(place):
        pipe = cls.from_pretrained(
            place, revision=revision, variant=variant, dtype=dtype, use_safetensors=True, **{**absent, **given}
        )
    if place != base:
        pipe.register_to_config(_name_or_path=base)
    return _laid_out(pipe, given) if laid_out else pipe


def parted(base: str) -> tuple[str, Any]:
    """Where a base is, and the class of its pipeline: that which it was saved as, or the one behind "#".

    Raises:
        FeraError: diffusers has no pipeline of that class.
    """
    place, name = named_class(base)
    return place, DiffusionPipeline if name is None else getattr(diffusers, name)


def read_index(base: str, *, revision: str | None = None) -> dict[str, Any]:
    """What a pipeline's `model_index.json` says: its parts by name, and settings.

    Args:
        base: a folder or a Hub id.
        revision: branch, tag or commit, for a Hub id.

    Raises:
        FeraError: nothing is there, or it cannot be read.
    """
    place, _ = parted(base)
    check_base(place)
    if is_modular(place):
        return modular_index(place)
    with loading(place):
        index = DiffusionPipeline.load_config(place, revision=revision)
    if not isinstance(index, dict):
        raise FeraError(f"cannot load base {base!r}: its model_index.json is no JSON object")
    if Path(place).is_dir():
        _check_parts(Path(place), index)
    return index


def _load_alone(base: str, alone: SingleFile, dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """Load what a file holds; where that fails, the message says whose configuration was taken."""
    config = alone.config
    try:
        with loading(str(alone.file)):
            config = config or guessed_config(alone)
        with loading(config):
            pipe = load_single_file(alone, config, dtype)
    except FeraError as error:
        if alone.config is not None or config is None:
            raise FeraError(f"base {alone.file}: {error}") from error
        lacking = lacking_parts(alone.file) if config == model_of(config) else ""
        raise FeraError(
            f"base {alone.file}: {error}. The configuration of {model_of(config)} was taken for it; name another, or a "
            f"folder here: {alone.file}{SEPARATOR}FOLDER{lacking}"
        ) from error
    pipe.register_to_config(_name_or_path=base)
    return pipe


def _laid_out(pipe: Any, given: Iterable[str] = ()) -> Any:
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name not in given:
            lay_out(part)
    return pipe


def lay_out(part: nn.Module) -> nn.Module:
    """Lay convolutions out channels last, which CPUs compute faster; values stay what they are.

    Args:
        part: the part of a pipeline; changed in place, unless it has no convolution of two dimensions.

    Returns:
        The part.
    """
    # On MPS, PyTorch's convolutions want them contiguous.
    if not torch.backends.mps.is_available():
        for module in part.modules():
            # One by one: some models have convolutions of three dimensions too, for which there is no such layout.
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return part


def to_device(pipe: Any, name: str | None, offload: str = "none") -> str:
    """Move a pipeline.

    Args:
        pipe: the pipeline.
        name: the name of the device, such as "cuda"; the fastest there is when None.
        offload: where the blocks of its denoisers wait for their use, as `offload_blocks` takes it.

    Returns:
        The device's name.

    Raises:
        FeraError: there is no such device here, or the pipeline does not fit, or its blocks cannot wait elsewhere.
    """
    device = named_device(name)
    try:
        if offload != "none":
            for denoiser in denoisers(pipe).values():
                offload_blocks(denoiser, torch.device(device), offload)
        move(pipe, device)
    except (RuntimeError, AssertionError) as error:
        raise FeraError(f"`device` {device}: {str(error).splitlines()[0]}") from error
    return device


def named_device(name: str | None) -> str:
    """The name of a device; the fastest there is when None."""
    fastest = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return fastest if name is None else name


def check_held(quantization: str, device: str | None, offload: str) -> None:
    """Refuse a way to hold denoisers, before they are loaded.

    Args:
        quantization: as `quantize` takes it.
        device: as `to_device` takes it.
        offload: likewise.

    Raises:
        FeraError: it cannot work here.
    """
    if quantization == "none":
        return
    check_quantization(quantization, torch.device(named_device(device)))
    if offload == "disk" or (offload != "none" and not KINDS[quantization].offloads):
        raise FeraError(f"`offload` {offload} does not go with `quantization` {quantization}: leave one out")


def quantize_denoisers(pipe: Any, quantization: str, device: str | None, dtype: torch.dtype, offload: str) -> None:
    """Hold the linear layers of a pipeline's denoisers in few bits.

    Args:
        pipe: the pipeline, on the CPU, without adapters.
        quantization: as `quantize` takes it.
        device: where it is to draw, as `to_device` takes it.
        dtype: what it computes in.
        offload: as `to_device` takes it; blocks that wait are quantized on the CPU.

    Raises:
        FeraError: as `check_held` and `quantize`.
    """
    check_held(quantization, device, offload)
    if quantization != "none":
        where = torch.device(named_device(device) if offload == "none" else "cpu")
        for denoiser in denoisers(pipe).values():
            quantize(denoiser, quantization, where, dtype)


def check_base(base: str) -> None:
    """Refuse what can be no base, before anything is read.

    Raises:
        FeraError: it is neither a pipeline's folder nor a Hub id.
    """
    folder = Path(base)
    if folder.exists():
        _check_folder(folder)
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", base) or base.startswith((".", "/")):
        raise FeraError(f"base {base!r} does not exist (looked from {Path.cwd()}) and is no Hub id (owner/name)")


@contextmanager
def loading(base: str) -> Iterator[None]:
    """For calls of diffusers alone: it answers odd files with errors of all kinds, those of programs among them."""
    try:
        yield
    except (ImportError, FeraError):
        raise
    except NameError as error:  # diffusers leaves names out where a package of a pipeline's own is not installed
        raise FeraError(
            f"cannot load base {base!r}: it needs a package that is not installed ({error}); OmniGen needs torchvision"
        ) from error
    except Exception as error:  # diffusers, transformers and the Hub's client raise many kinds
        where = "" if Path(base).exists() else " (no such folder here; tried as a Hub id)"
        raise FeraError(f"cannot load base {base!r}{where}: {reason_of(error)}") from error


def _check_folder(folder: Path) -> None:
    if not (folder / "model_index.json").is_file() and not is_modular(str(folder)):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise FeraError(
            f"base {folder} is no diffusers pipeline: there is no model_index.json in it (it holds {names}). "
            "Give the folder that pipeline.save_pretrained wrote"
        )


def _check_parts(folder: Path, index: dict[str, Any]) -> None:
    """Refuse a folder without that of a part: diffusers' error would not say which.

    Parts for which a pipeline has defaults, such as LongCat-AudioDiT's scheduler, diffusers neither saves nor asks for.
    """
    made = getattr(diffusers, str(index.get("_class_name")), None)
    known = {} if made is None else inspect.signature(made).parameters
    optional = {name for name, parameter in known.items() if parameter.default is not parameter.empty}
    # A library and a class; settings may be lists too, of numbers.
    parts = {
        name: value for name, value in index.items() if isinstance(value, list) and value and isinstance(value[-1], str)
    }
    parts = {name: value for name, value in parts.items() if name not in optional}
    if lacking := [f"{name} ({value[-1]})" for name, value in parts.items() if not (folder / name).is_dir()]:
        raise FeraError(
            f"base {folder} lacks {', '.join(lacking)}: model_index.json names it, and there is no such folder. Copy "
            "it there too; pipeline.save_pretrained writes all of them"
        )


def _absent_parts(index: dict[str, Any]) -> dict[str, None]:
    """Parts that were None when the pipeline was saved (SD3 without T5): diffusers wants to be told again."""
    return {name: None for name, value in index.items() if isinstance(value, list) and value == [None, None]}
