"""Another file's weights into a loaded adapter, in place.

The layers stay what they are, so nothing is injected and a compiled denoiser is not compiled again. PEFT's own
hot-swapping is for plain LoRA: it asks for "lora_" in every key, and takes the scale from the rank of one LoRA.
"""

from collections.abc import Mapping
from typing import Any

from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from fera.adapters.file import AdapterFile
from fera.errors import FeraError
from fera.format import PEFT_PREFIX, peft_key
from fera.tuner import FeraConfig
from fera.tuner.fingerprint import check_fingerprint
from fera.tuner.model import adapter_configs

# Settings that say where an adapter comes from, or which layers it is in: those are compared by their tensors.
_NOT_COMPARED = {
    "auto_mapping",
    "base_fingerprint",
    "base_model_name_or_path",
    "component",
    "exclude_modules",
    "format_version",
    "inference_mode",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
}
_ADVICE = "unload it and load the file without hotswap"


def swap_adapters(
    denoisers: Mapping[str, nn.Module], files: Mapping[str, AdapterFile], adapter_name: str, *, check_base: bool = True
) -> None:
    """Replace the experts and the routers of a loaded adapter by those of files.

    The adapter keeps its name, its weight and whether it is active.

    Args:
        denoisers: the models that hold the adapter, by name.
        files: the adapter for each of them, with the same settings and shapes.
        adapter_name: the adapter to replace.
        check_base: hold the bases against the files' fingerprints.

    Raises:
        FeraError: there is no such routed adapter, or a file's has other settings, layers or shapes, or another base.
            Nothing has changed then.
    """
    for name, file in files.items():
        try:
            _check(denoisers[name], file, adapter_name, check_base)
        except FeraError as error:
            raise FeraError(f"cannot replace adapter {adapter_name!r} of {name} in place: {error}") from error
    tensors = {name: file.tensors() for name, file in files.items()}
    for name, file in files.items():
        configs = adapter_configs(denoisers[name])
        set_peft_model_state_dict(denoisers[name], tensors[name], adapter_name)
        file.config.inference_mode = configs[adapter_name].inference_mode
        configs[adapter_name] = file.config


def _check(denoiser: nn.Module, file: AdapterFile, adapter_name: str, check_base: bool) -> None:
    current = adapter_configs(denoiser).get(adapter_name)
    if not isinstance(current, FeraConfig):
        routed = [name for name, config in adapter_configs(denoiser).items() if isinstance(config, FeraConfig)]
        raise FeraError(
            f"there is no such FeRA adapter (there are: {', '.join(routed) or 'none'}); load it without hotswap first"
        )
    if check_base and file.config.base_fingerprint is not None:
        check_fingerprint(denoiser, file.config.base_fingerprint)
    here, given = _settings(current), _settings(file.config)
    for name in sorted(here.keys() | given.keys()):
        if here.get(name) != given.get(name):
            raise FeraError(f"it has {name}={here.get(name)!r}, the file {given.get(name)!r}; {_ADVICE}")
    _check_shapes(denoiser, file, adapter_name)


def _settings(config: FeraConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPARED}


def _check_shapes(denoiser: nn.Module, file: AdapterFile, adapter_name: str) -> None:
    own = get_peft_model_state_dict(denoiser, adapter_name=adapter_name, save_embedding_layers=False)
    here = {peft_key(key).removeprefix(PEFT_PREFIX): tuple(tensor.shape) for key, tensor in own.items()}
    given = {key.removeprefix(PEFT_PREFIX): shape for key, shape in file.shapes.items()}
    for key in sorted(here.keys() | given.keys()):
        if key not in given:
            raise FeraError(f"the file has no tensor {key}; {_ADVICE}")
        if key not in here:
            raise FeraError(f"the file's tensor {key} has no place in it; {_ADVICE}")
        if here[key] != given[key]:
            raise FeraError(f"its tensor {key} has shape {here[key]}, the file's {given[key]}; {_ADVICE}")
