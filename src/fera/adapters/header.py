"""What an adapter's files say of themselves, read without trust and without PyTorch.

The settings are checked as far as they can be without building anything from them: `fera.adapters.file` does the rest.
Nothing is ever unpickled.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fera.adapters.checks import check_limits, check_settings, check_shapes
from fera.errors import PROGRAMMING_ERRORS, FeraError
from fera.format import CONFIG, EXPERTS, FORMAT_VERSION, METADATA_KEY, TEXT_LORA, TOKEN_FILES, WEIGHTS, peft_key
from fera.method.settings import DEFAULTS, check_format, check_ranges

_CONFIG_BYTES = 2**22
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class AdapterHeader:
    """An adapter on disk: settings and shapes, no weights.

    Args:
        weights: the safetensors file.
        settings: as they were saved.
        shapes: shape of each tensor by its name in PEFT.
        dtypes: the dtypes of the tensors, in safetensors' words ("F32").
        versions: the versions of the libraries it was written with, where known.
        metadata: the metadata of the safetensors file.
        text: names of the files with its parts in the text encoders.
    """

    weights: Path
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: list[str]
    versions: dict[str, str]
    metadata: dict[str, str]
    text: list[str]


def read_header(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> AdapterHeader:
    """Find an adapter and read what its files say.

    Args:
        source: a folder with the two files, a run folder of `fera train`, one safetensors file, or a Hub id.
        revision: branch, tag or commit, for a Hub id.
        token: access token, for a Hub id.

    Raises:
        FeraError: nothing is there, it is no routed adapter, it is damaged or a pickle, or it needs a newer fera.
    """
    weights, fetch = _find_weights(source, revision, token)
    metadata, shapes, dtypes = _read_tensors(weights)
    settings, versions = _read_settings(weights, metadata)
    where = str(weights.parent)
    check_settings(settings, where)
    check_shapes(shapes, str(weights))
    _check_kind(settings, where)
    _check_ranks(settings, shapes, weights)
    check_limits(settings, where)
    text = _text_names(metadata, weights)
    try:
        for name in text:
            fetch(name)
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # the Hub's client raises many kinds
        raise FeraError(f"{weights.parent}: its {name} cannot be downloaded: {error}") from error
    return AdapterHeader(weights, settings, shapes, dtypes, versions, metadata, text)


def _find_weights(
    source: str | os.PathLike[str], revision: str | None, token: str | None
) -> tuple[Path, Callable[[str], object]]:
    """The weights, and what fetches another file beside them."""
    path = Path(source)
    if path.is_file():
        if path.suffix in _PICKLES:
            raise _pickle_refused(path)
        return path, _is_here
    if path.is_dir():
        for folder in (path, path / "adapter"):
            if (folder / WEIGHTS).is_file():
                return folder / WEIGHTS, _is_here
        if pickles := [file for file in sorted(path.iterdir()) if file.suffix in _PICKLES]:
            raise _pickle_refused(pickles[0])
        inside = ", ".join(str(file.parent) for file in sorted(path.glob(f"*/{WEIGHTS}")))
        advice = f". There are adapters in {inside}: name one of them" if inside else ""
        raise FeraError(f"{path} holds no adapter: there is no {WEIGHTS} in it, nor in {path / 'adapter'}{advice}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.suffix:
        return _download(str(source), revision, token)
    raise FeraError(f"no adapter at {source}: there is no such file or folder, and it is no Hub id (owner/name)")


def _is_here(name: str) -> None:
    """Files of a folder need no fetching."""


def _download(repo_id: str, revision: str | None, token: str | None) -> tuple[Path, Callable[[str], object]]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(name: str) -> str:
        return hf_hub_download(repo_id, name, revision=revision, token=token)

    try:
        weights = Path(fetch(WEIGHTS))
        try:
            fetch(CONFIG)
        except EntryNotFoundError:
            pass  # the weights carry the config too
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # the Hub's client raises many kinds: offline, missing, gated, a bad name
        reason = str(error).strip().splitlines()[0]
        raise FeraError(
            f"no adapter at {repo_id!r} (no such folder here, and not found on the Hub): {reason}"
        ) from error
    return weights, fetch


def _read_tensors(weights: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]], list[str]]:
    """Metadata, shapes by name in PEFT, and dtypes."""
    try:
        with safe_open(weights, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            shapes = {peft_key(key): tuple(one.get_shape()) for key, one in slices.items()}
            return file.metadata() or {}, shapes, sorted({one.get_dtype() for one in slices.values()})
    except (SafetensorError, OSError) as error:
        start = _first_bytes(weights)
        if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise _pickle_refused(weights) from error
        raise FeraError(f"{weights} is not a readable safetensors file ({error}); copy or download it again") from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2)
    except OSError:
        return b""


def _read_settings(weights: Path, metadata: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    beside = weights.with_name(CONFIG)
    try:
        own = json.loads(metadata.get(METADATA_KEY, "{}"))
        if beside.is_file() and beside.stat().st_size > _CONFIG_BYTES:
            raise ValueError(f"it has more than {_CONFIG_BYTES:,} bytes")
        settings = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else own.get("config")
        versions = {str(name): str(version) for name, version in own.get("versions", {}).items()}
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise FeraError(f"the adapter's config at {beside} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise FeraError(
            f"{weights} is no FeRA adapter: there is no {CONFIG} beside it and no config in its metadata. "
            "A plain LoRA loads with pipe.load_lora_weights"
        )
    if "peft_version" in settings:
        versions = {"peft": str(settings["peft_version"]), **versions}
    return settings, versions


def _check_kind(settings: dict[str, Any], where: str) -> None:
    kind = settings.get("peft_type")
    if kind != "FERA":
        raise FeraError(f"{where} is a {kind} adapter, not FeRA; load it with pipe.load_lora_weights or peft")
    expert = settings.get("expert")
    try:
        check_format(settings.get("format_version", FORMAT_VERSION))
        check_ranges(settings)
        if expert is not None and not isinstance(expert, dict):
            raise FeraError(f"expert must be a PEFT config or a dict of one, got a {type(expert).__name__}")
    except FeraError as error:
        raise FeraError(f"{where}: {error}") from error


def _check_ranks(settings: dict[str, Any], shapes: dict[str, tuple[int, ...]], weights: Path) -> None:
    """The config decides what is allocated: it must not ask for more than the file holds."""
    given = DEFAULTS | settings
    if given.get("expert") is not None:
        _check_scheme(given, shapes, weights)
        return
    ranks = {shape[0] for key, shape in shapes.items() if ".lora_A." in key and shape}
    wanted = {rank * given["num_experts"] for rank in (given["r"], *(given["rank_pattern"] or {}).values())}
    if given["ranks"] is not None:
        wanted = {sum(given["ranks"])}
    if not ranks or max(wanted) > max(ranks):
        raise FeraError(
            f"{weights} does not fit its config: {given['num_experts']} experts of rank {given['r']} need tensors of "
            f"rank {max(wanted)}, it has {max(ranks, default=0)}"
        )


def _check_scheme(given: dict[str, Any], shapes: dict[str, tuple[int, ...]], weights: Path) -> None:
    """As `_check_ranks`, for experts of other schemes: their rank is a side of some tensor, their count is in keys."""
    counts = {int(found[1]) for key in shapes if (found := re.search(rf"\.{EXPERTS}\.(\d+)\.", key))}
    sides = {side for shape in shapes.values() for side in shape}
    rank = given["expert"].get("r") or 0
    if counts != set(range(given["num_experts"])) or (isinstance(rank, int) and rank > max(sides, default=0)):
        raise FeraError(
            f"{weights} does not fit its config: that has {given['num_experts']} experts of rank {rank}, the file "
            f"holds {len(counts)} and no side above {max(sides, default=0)}"
        )


def _text_names(metadata: dict[str, str], weights: Path) -> list[str]:
    """Names of the files with the adapter's text parts."""
    names = json.loads(metadata.get(METADATA_KEY, "{}")).get("text")  # JSON it is: the settings were read from it
    if names is None:
        return []
    _check_names(names, str(weights))
    return list(names)


def _check_names(names: Any, where: str) -> None:
    """Refuse a list of files that is none: names of other files, or paths that lead elsewhere."""
    if not isinstance(names, list) or not all(
        isinstance(name, str) and (name == TEXT_LORA or re.fullmatch(TOKEN_FILES, name)) for name in names
    ):
        raise FeraError(f"{where} names text files that fera does not write: {str(names)[:200]}")


def _pickle_refused(path: Path) -> FeraError:
    return FeraError(f"{path} is a pickle, which can run any code when it is loaded; fera reads safetensors only")
