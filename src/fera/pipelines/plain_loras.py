"""Plain LoRAs for a pipeline's denoiser, read in every naming that diffusers and PEFT read.

diffusers turns the names of kohya's scripts, of ComfyUI and of other trainers into its own, and PEFT reads what it has
written. Both put a LoRA into the denoiser to do so; it is taken out again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fera.errors import PROGRAMMING_ERRORS, FeraError, reason_of
from fera.format import CONFIG, METADATA_KEY, PEFT_PREFIX, WEIGHTS
from fera.models.components import BARE
from fera.tuner.model import remove_adapters

_NAME = "fera_start"
# The file of a folder that diffusers wrote.
_OF_DIFFUSERS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LoraPair:
    """The LoRA of one layer: it adds `scale * up @ down` to the weight.

    Args:
        down: A, shape (r, in), or (r, in, ...) of a convolution.
        up: B, shape (out, r), or (out, r, ...).
        scale: alpha / r, or alpha / sqrt(r).
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Its rank."""
        return len(self.down)


def is_plain_lora(source: str | os.PathLike[str]) -> bool:
    """Whether files are a plain LoRA, as far as their names say; a Hub id is taken for a routed adapter."""
    path = Path(source)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return _peft_type(path / CONFIG) == "LORA"
        return (path / _OF_DIFFUSERS).is_file()
    if path.suffix != ".safetensors" or not path.is_file() or _peft_type(path.parent / CONFIG) is not None:
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return METADATA_KEY not in (file.metadata() or {}) and any("lora" in key for key in file.keys())
    except (SafetensorError, OSError):
        return False


def put_plain_lora(pipe: Any, component: str, source: str | os.PathLike[str], adapter_name: str) -> None:
    """Load a plain LoRA into a pipeline, beside whatever it holds; what it has in the text encoders too.

    Args:
        pipe: the pipeline, or a denoiser alone, which takes a folder that PEFT wrote.
        component: the name of the denoiser in it; `BARE` of a denoiser alone.
        source: as `read_plain_lora`.
        adapter_name: what to call it.

    Raises:
        FeraError: as `read_plain_lora`; nothing is loaded then.
    """
    path = Path(source)
    is_of_peft = (path / CONFIG).is_file()
    if component == BARE and not is_of_peft:
        raise FeraError(f"diffusers reads {source} for a pipeline: give that, not its denoiser alone")
    holder = SimpleNamespace(**{BARE: pipe}) if component == BARE else pipe
    read_plain_lora(holder, component, source)
    if is_of_peft:
        _put_in_by_peft(getattr(holder, component), path, adapter_name)
    else:
        _load_by_diffusers(pipe, path, adapter_name)


def read_plain_lora(pipe: Any, component: str, source: str | os.PathLike[str]) -> dict[str, LoraPair]:
    """The LoRA of a denoiser by the names of its layers.

    Args:
        pipe: the pipeline; it is left as it was.
        component: the name of the denoiser in it.
        source: one safetensors file in the naming of diffusers, kohya, ComfyUI or PEFT; a folder that PEFT or diffusers
            wrote; or a Hub id of such.

    Raises:
        FeraError: nothing is there, it cannot be read, or it is no LoRA of this denoiser alone: a layer of it is not
            there, has another shape, or has more to it than two matrices.
    """
    denoiser: nn.Module = getattr(pipe, component)
    path = Path(source)
    if not path.exists() and (path.suffix or str(source).count("/") != 1):
        raise FeraError(f"there is no {source} (looked from {Path.cwd()})")
    try:
        with _taken_out(denoiser):
            if (path / CONFIG).is_file():
                wanted = _put_in_by_peft(denoiser, path, _NAME)
            else:
                wanted = _put_in_by_diffusers(pipe, component, source)
            found = _pairs(denoiser)
    except FeraError as error:
        raise FeraError(f"{source} is no LoRA for this {type(denoiser).__name__}: {error}") from error
    finally:
        _forget(pipe)
    if missing := sorted(wanted - found.keys()):
        raise FeraError(
            f"{source} is a LoRA of another base: {type(denoiser).__name__} has no layer {missing[0]}"
            + (f", nor {len(missing) - 1} others of it" if len(missing) > 1 else "")
        )
    if not found:
        raise FeraError(f"{source} holds no LoRA for the layers of a {type(denoiser).__name__}: it is of another base")
    return found


def _peft_type(config: Path) -> str | None:
    """What a folder's config says that its adapter is; None where there is none that can be read."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return str(settings.get("peft_type")) if isinstance(settings, dict) else None


def _put_in_by_peft(denoiser: nn.Module, folder: Path, adapter_name: str) -> set[str]:
    """Layers of a folder that PEFT wrote."""
    with _readable(folder):
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS)
    if type(config) is not LoraConfig:
        raise FeraError(f"it is a {type(config).__name__.removesuffix('Config')} adapter")
    with _fitting():
        inject_adapter_in_model(config, denoiser, adapter_name)
        set_peft_model_state_dict(denoiser, tensors, adapter_name)
    return {key.removeprefix(PEFT_PREFIX).split(".lora_")[0] for key in tensors if ".lora_" in key}


def _put_in_by_diffusers(pipe: Any, component: str, source: str | os.PathLike[str]) -> set[str]:
    """Layers of a file of any naming that diffusers knows for this pipeline."""
    if not hasattr(pipe, "load_lora_weights"):
        raise FeraError(f"diffusers reads no LoRA files for a {type(pipe).__name__}; give a folder that PEFT wrote")
    path = Path(source)
    where = {"weight_name": path.name} if path.is_file() else {}
    with _readable(path):
        state = pipe.lora_state_dict(str(path.parent if path.is_file() else source), **where)
    state = state[0] if isinstance(state, tuple) else state
    own = {key.removeprefix(f"{component}.") for key in state if key.startswith(f"{component}.")}
    with _fitting():
        _load_by_diffusers(pipe, path, _NAME)
    return {key.split(".lora")[0] for key in own if ".lora" in key}


def _load_by_diffusers(pipe: Any, path: Path, adapter_name: str) -> None:
    where = {"weight_name": path.name} if path.is_file() else {}
    pipe.load_lora_weights(str(path.parent if path.is_file() else path), adapter_name=adapter_name, **where)


def _pairs(denoiser: nn.Module) -> dict[str, LoraPair]:
    found = {}
    layers: dict[str, Any] = {name: part for name, part in denoiser.named_modules() if isinstance(part, LoraLayer)}
    for name, layer in layers.items():
        if _NAME not in layer.lora_A:
            continue
        if _NAME in layer.lora_variant or layer.lora_bias.get(_NAME):
            raise FeraError(f"its {name} has more than two matrices (DoRA, or a bias)")
        down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
        found[name] = LoraPair(down.detach().float().cpu(), up.detach().float().cpu(), float(layer.scaling[_NAME]))
    return found


@contextmanager
def _taken_out(denoiser: nn.Module) -> Iterator[None]:
    """Takes out again what is put in, and leaves what trains and the mode as they were."""
    trains: Mapping[str, bool] = {name: weight.requires_grad for name, weight in denoiser.named_parameters()}
    try:
        yield
    finally:
        remove_adapters(denoiser, [_NAME])
        if hasattr(denoiser, "_hf_peft_config_loaded") and not getattr(denoiser, "peft_config", None):
            denoiser._hf_peft_config_loaded = False  # type: ignore[assignment]
        for name, weight in denoiser.named_parameters():
            weight.requires_grad_(trains[name])


def _forget(pipe: Any) -> None:
    """Take out what diffusers has put into the text encoders."""
    for name in getattr(pipe, "_lora_loadable_modules", ()):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            remove_adapters(module, [_NAME])
            if hasattr(module, "_hf_peft_config_loaded") and not getattr(module, "peft_config", None):
                module._hf_peft_config_loaded = False  # type: ignore[assignment]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # PEFT, diffusers, safetensors and the Hub's client raise many kinds
        raise FeraError(f"it cannot be read: {reason_of(error)}") from error


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # of a layer that is missing, or of another shape
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FeraError(f"it does not fit ({lines[1] if len(lines) > 1 else lines[0]})") from error
