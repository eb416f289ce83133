"""An adapter's files: opening them, and writing them.

An adapter is a folder as PEFT writes it: `adapter_model.safetensors` with PEFT's keys and the router's, and
`adapter_config.json`. The sides of LoRA experts have names of their own in the file (`fera.format`). fera writes the
config into the metadata of the weights too, so that the one file is enough.
Where an adapter has parts in the text encoders, the metadata lists their files (`fera.adapters.text.files`).
`fera.adapters.header` reads and checks what can be read without PyTorch.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from fera.adapters.header import AdapterHeader, read_header
from fera.adapters.tensors import save_tensors
from fera.adapters.text.files import TextFiles, open_text
from fera.errors import FeraError
from fera.format import CONFIG, METADATA_KEY, PEFT_PREFIX, WEIGHTS, peft_key
from fera.support.files import replace_file
from fera.tuner import FeraConfig
from fera.tuner.model import adapter_configs
from fera.version import __version__


@dataclass(frozen=True)
class AdapterFile:
    """An adapter on disk, its weights not yet read.

    Args:
        weights: the safetensors file.
        config: its settings.
        shapes: shape of each tensor by its name in PEFT.
        versions: the versions of the libraries it was written with, where known.
        metadata: the metadata of the safetensors file.
        text: its parts in the text encoders; None where it has none.
    """

    weights: Path
    config: FeraConfig
    shapes: dict[str, tuple[int, ...]]
    versions: dict[str, str]
    metadata: dict[str, str]
    text: TextFiles | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their names in PEFT, on the CPU, in the dtype they were saved in."""
        return {peft_key(key): tensor for key, tensor in load_file(self.weights).items()}


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
    header = read_header(source, revision=revision, token=token)
    config = _build_config(header)
    text = open_text(header.weights.parent, header.text) if header.text else None
    return AdapterFile(header.weights, config, header.shapes, header.versions, header.metadata, text)


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
    if any(tensor.is_meta for tensor in state.values()):
        raise FeraError(
            f"the weights of adapter {adapter_name!r} are not in memory (offloaded by accelerate), so they cannot be "
            "saved from the denoiser alone; give the pipeline: fera.save_adapter(pipe, ...)"
        )
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
        replace_file(folder / WEIGHTS, lambda path: save_tensors(tensors, path, metadata))
        text = json.dumps(settings, indent=2, sort_keys=True)
        replace_file(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot write the adapter to {folder}: {error.strerror or error}") from error


def _build_config(header: AdapterHeader) -> FeraConfig:
    folder = header.weights.parent
    try:
        config = PeftConfig.from_peft_type(**header.settings)
    except FeraError as error:
        raise FeraError(f"{folder}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise FeraError(f"the adapter's config beside {header.weights} is not valid: {error}") from error
    assert isinstance(config, FeraConfig)
    return config


def _jsonable(config: FeraConfig) -> dict[str, Any]:
    settings = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def _versions() -> dict[str, str]:
    return {"fera": __version__, "peft": peft.__version__, "torch": torch.__version__}
