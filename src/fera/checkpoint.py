"""What is in an adapter's files, and reading them without trust.

An adapter is a folder as PEFT writes it: `adapter_model.safetensors` with PEFT's keys and the router's, and
`adapter_config.json`. fera writes the config into the metadata of the weights too, so that the one file is enough.
Where an adapter has parts in the text encoders, the metadata lists their files (`fera.text.files`). Nothing is ever
unpickled.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fera.adapter_checks import check_limits, check_settings, check_shapes
from fera.errors import FeraError
from fera.files import replace_file
from fera.text.files import TextFiles, check_names, open_text
from fera.tuner import FeraConfig
from fera.tuner.mixture import EXPERTS
from fera.tuner.model import adapter_configs

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
METADATA_KEY = "fera"
_CONFIG_BYTES = 2**22
PEFT_PREFIX = "base_model.model."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter on disk, its weights not yet read.

    Args:
        weights: the safetensors file.
        config: its settings.
        shapes: shape of each tensor by its key.
        versions: of the libraries it was written with, where known.
        metadata: of the safetensors file.
        text: its parts in the text encoders; None where it has none.
    """

    weights: Path
    config: FeraConfig
    shapes: dict[str, tuple[int, ...]]
    versions: dict[str, str]
    metadata: dict[str, str]
    text: TextFiles | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU, in the dtype they were saved in."""
        return load_file(self.weights)


def open_adapter(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> AdapterFile:
    """Find an adapter and read its settings.

    Args:
        source: a folder with the two files, a run folder of `fera train`, one safetensors file, or a Hub id.
        revision: branch, tag or commit, for a Hub id.
        token: access token, for a Hub id.

    Raises:
        FeraError: nothing is there, it is no routed adapter, it is damaged or a pickle, or it needs a newer fera.
    """
    weights, fetch = _find_weights(source, revision, token)
    metadata, shapes = _read_header(weights)
    settings, versions = _read_settings(weights, metadata)
    check_settings(settings, str(weights.parent))
    check_shapes(shapes, str(weights))
    config = _build_config(settings, weights)
    _check_ranks(config, shapes, weights)
    check_limits(settings, str(weights.parent))
    text = _open_text(weights, metadata, fetch)
    return AdapterFile(weights, config, shapes, versions, metadata, text)


def write_adapter(
    denoiser: nn.Module, folder: str | os.PathLike[str], adapter_name: str, text: Sequence[str] = ()
) -> None:
    """Save one adapter of a denoiser as PEFT would, with its config in the metadata of the weights too.

    Both files are replaced whole: a crash leaves the old ones.

    Args:
        denoiser: the model that holds the adapter.
        folder: made if missing.
        adapter_name: the adapter.
        text: names of the files beside it with its parts in the text encoders.

    Raises:
        FeraError: the denoiser has no such FeRA adapter, or the folder cannot be written.
    """
    config = adapter_configs(denoiser).get(adapter_name)
    if not isinstance(config, FeraConfig):
        have = [name for name, other in adapter_configs(denoiser).items() if isinstance(other, FeraConfig)]
        raise FeraError(f"no FeRA adapter {adapter_name!r} to save; there are: {', '.join(have) or 'none'}")
    state = get_peft_model_state_dict(denoiser, adapter_name=adapter_name, save_embedding_layers=False)
    tensors = {
        f"{PEFT_PREFIX}{key.removeprefix(PEFT_PREFIX)}": tensor.detach().contiguous().cpu()
        for key, tensor in state.items()
    }
    settings = {**_jsonable(config), "inference_mode": True}
    about = {"config": settings, "versions": _versions()} | ({"text": list(text)} if text else {})
    metadata = {"format": "pt", METADATA_KEY: json.dumps(about, sort_keys=True)}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata=metadata))
        text = json.dumps(settings, indent=2, sort_keys=True)
        replace_file(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot write the adapter to {folder}: {error.strerror or error}") from error


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
    except Exception as error:  # the Hub's client raises many kinds: offline, missing, gated, a bad name
        reason = str(error).strip().splitlines()[0]
        raise FeraError(
            f"no adapter at {repo_id!r} (no such folder here, and not found on the Hub): {reason}"
        ) from error
    return weights, fetch


def _open_text(weights: Path, metadata: dict[str, str], fetch: Callable[[str], object]) -> TextFiles | None:
    names = json.loads(metadata.get(METADATA_KEY, "{}")).get("text")  # JSON it is: the settings were read from it
    if names is None:
        return None
    check_names(names, str(weights))
    try:
        for name in names:
            fetch(name)
    except Exception as error:  # the Hub's client raises many kinds
        raise FeraError(f"{weights.parent}: its {name} cannot be downloaded: {error}") from error
    return open_text(weights.parent, names)


def _read_header(weights: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            return file.metadata() or {}, shapes
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


def _build_config(settings: dict[str, Any], weights: Path) -> FeraConfig:
    kind = settings.get("peft_type")
    if kind != "FERA":
        raise FeraError(f"{weights.parent} is a {kind} adapter, not FeRA; load it with pipe.load_lora_weights or peft")
    try:
        config = PeftConfig.from_peft_type(**settings)
    except FeraError as error:
        raise FeraError(f"{weights.parent}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise FeraError(f"the adapter's config beside {weights} is not valid: {error}") from error
    assert isinstance(config, FeraConfig)
    return config


def _check_ranks(config: FeraConfig, shapes: dict[str, tuple[int, ...]], weights: Path) -> None:
    """The config decides what is allocated: it must not ask for more than the file holds."""
    if config.expert is not None:
        _check_scheme(config, shapes, weights)
        return
    ranks = {shape[0] for key, shape in shapes.items() if ".lora_A." in key and shape}
    wanted = {rank * config.num_experts for rank in (config.r, *(config.rank_pattern or {}).values())}
    if not ranks or max(wanted) > max(ranks):
        raise FeraError(
            f"{weights} does not fit its config: {config.num_experts} experts of rank {config.r} need tensors of rank "
            f"{max(wanted)}, it has {max(ranks, default=0)}"
        )


def _check_scheme(config: FeraConfig, shapes: dict[str, tuple[int, ...]], weights: Path) -> None:
    """As `_check_ranks`, for experts of other schemes: their rank is a side of some tensor, their count is in keys."""
    counts = {int(found[1]) for key in shapes if (found := re.search(rf"\.{EXPERTS}\.(\d+)\.", key))}
    sides = {side for shape in shapes.values() for side in shape}
    rank = getattr(config.expert, "r", 0)
    if counts != set(range(config.num_experts)) or (rank and rank > max(sides)):
        raise FeraError(
            f"{weights} does not fit its config: that has {config.num_experts} experts of rank {rank}, the file holds "
            f"{len(counts)} and no side above {max(sides, default=0)}"
        )


def _jsonable(config: FeraConfig) -> dict[str, Any]:
    settings = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def _versions() -> dict[str, str]:
    import fera

    return {"fera": fera.__version__, "peft": peft.__version__, "torch": torch.__version__}


def _pickle_refused(path: Path) -> FeraError:
    return FeraError(f"{path} is a pickle, which can run any code when it is loaded; fera reads safetensors only")
