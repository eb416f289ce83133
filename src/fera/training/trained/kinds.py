"""What trains in a denoiser: routed experts, or one of the baselines that they are compared with.

The loop is the same for all. They differ in what is put into the denoiser and in how it is kept.
"""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import cast_training_params
from peft import inject_adapter_in_model, set_peft_model_state_dict
from torch import nn

from fera.adapters.file import open_adapter
from fera.config import AdapterConfig
from fera.errors import FeraError
from fera.method.routing import Routing
from fera.models.components import denoisers
from fera.models.layers import Layers, by_name
from fera.pipelines.adapters import load_adapter, save_adapter, trace
from fera.support.files import os_errors, sync
from fera.training.processes.fsdp import sharded_like
from fera.training.trained.placed import placed_by
from fera.training.trained.plain import add_plain, plain_config, read_plain, write_plain
from fera.training.trained.start_from import Start
from fera.tuner import FeraConfig

ADAPTER_NAME = "default"


class Adapter(Protocol):
    """What trains in a denoiser, and how it is kept."""

    @property
    def loading(self) -> str:
        """How a user loads the finished one, in a few words."""

    def add(self, denoiser: nn.Module) -> None:
        """Make it, fresh, in float32, and let nothing else of the denoiser train."""

    def save(self, pipe: Any, folder: Path) -> None:
        """Write it into a folder."""

    def restore(self, denoiser: nn.Module, folder: Path) -> None:
        """Give the one in the denoiser the weights of a folder that `save` wrote."""

    def load(self, pipe: Any, folder: Path) -> None:
        """Put the one of a folder into a pipeline that has none, for drawing."""

    def routings(self, denoiser: nn.Module) -> Any:
        """Context that records what the denoiser's forwards are routed by; an empty list where nothing is."""


def adapter_of(config: AdapterConfig, start: Start | None = None) -> Adapter:
    """What a configuration trains.

    Args:
        config: the section of the configuration.
        start: what it starts from, where that is no fresh adapter; to load a trained one it is not needed.
    """
    if config.full:
        return FullFineTuning()
    layers = Layers(config.target_modules, config.exclude_modules, config.blocks)
    if config.plain is not None:
        return PlainAdapter(config.plain, layers)
    if start is not None:
        own = start.config if start.has_router else replace(start.config, kappa=config.kappa)
        return RoutedAdapter(own, start=start)
    placed, apart = {"target_modules", "exclude_modules", "blocks"}, {"start_from", "plain", "full", "component"}
    apart |= {"router_init", "router_entropy", "top_k"}
    return RoutedAdapter(FeraConfig(**config.model_dump(exclude=placed | apart)), layers)


@dataclass(frozen=True)
class RoutedAdapter:
    """Experts and their router.

    Args:
        config: the config of the adapter, its kappa a number, its patterns as in a configuration.
        layers: the layers that it goes into.
        start: what it starts from; None where it starts fresh.
    """

    config: FeraConfig
    layers: Layers = Layers()
    start: Start | None = None
    loading = "load it with fera.load_adapter(pipe, ...)"

    def add(self, denoiser: nn.Module) -> None:
        """Make it."""
        denoiser.requires_grad_(False)
        inject_adapter_in_model(self._config_for(denoiser), denoiser, ADAPTER_NAME)
        if self.start is not None:
            self.start.apply(denoiser, ADAPTER_NAME)
        cast_training_params(denoiser, torch.float32)  # fresh layers follow the base's precision

    def save(self, pipe: Any, folder: Path) -> None:
        """Write it."""
        save_adapter(pipe, folder, adapter_name=ADAPTER_NAME)

    def restore(self, denoiser: nn.Module, folder: Path) -> None:
        """Read its weights."""
        set_peft_model_state_dict(denoiser, sharded_like(denoiser, open_adapter(folder).tensors()), ADAPTER_NAME)

    def load(self, pipe: Any, folder: Path) -> None:
        """Put it into a pipeline."""
        load_adapter(pipe, folder)

    def routings(self, denoiser: nn.Module) -> Any:
        """Record the gates, on the denoiser's device: a training step does not wait for them."""
        return trace(denoiser, to_cpu=False) if self.config.has_gate else _nothing_routed()

    def _config_for(self, denoiser: nn.Module) -> FeraConfig:
        """The config with the names of this denoiser's layers in the place of patterns."""
        config = copy.copy(self.config)
        if self.start is not None:
            return config
        if self.layers.is_plain and not config.rank_pattern and not config.alpha_pattern:
            targets: Any = None if self.layers.target_modules is None else set(self.layers.target_modules)
            config.target_modules = targets
            return config
        for name, value in self.layers.settings(denoiser).items():
            setattr(config, name, set(value))
        names = self.layers.names(denoiser)
        for setting in ("rank_pattern", "alpha_pattern"):
            setattr(config, setting, by_name(getattr(config, setting) or {}, names, setting))
        return config


@dataclass(frozen=True)
class PlainAdapter:
    """A stock PEFT adapter.

    Args:
        settings: `peft_type` and fields of that scheme's config.
        layers: the layers that it goes into.
    """

    settings: dict[str, Any]
    layers: Layers = Layers()
    loading = "load it with peft.PeftModel.from_pretrained(denoiser, ...)"

    def add(self, denoiser: nn.Module) -> None:
        """Make it."""
        denoiser.requires_grad_(False)
        add_plain(denoiser, plain_config(self.settings, self._placed(denoiser)), ADAPTER_NAME)
        cast_training_params(denoiser, torch.float32)

    def save(self, pipe: Any, folder: Path) -> None:
        """Write it."""
        write_plain(_denoiser_of(pipe)[1], folder, ADAPTER_NAME, str(getattr(pipe, "name_or_path", "") or ""))

    def restore(self, denoiser: nn.Module, folder: Path) -> None:
        """Read its weights."""
        read_plain(denoiser, folder, ADAPTER_NAME)

    def load(self, pipe: Any, folder: Path) -> None:
        """Put it into a pipeline."""
        _, denoiser = _denoiser_of(pipe)
        was_training = denoiser.training
        # Where nothing says which layers, the file does: the defaults may have been others when it was trained.
        placed = placed_by(folder) if self.layers == Layers() else self._placed(denoiser)
        add_plain(denoiser, plain_config(self.settings, placed), ADAPTER_NAME)
        read_plain(denoiser, folder, ADAPTER_NAME)
        denoiser.train(was_training)  # fresh layers are in training mode

    def routings(self, denoiser: nn.Module) -> Any:
        """Nothing is routed."""
        return _nothing_routed()

    def _placed(self, denoiser: nn.Module) -> dict[str, list[str]]:
        """The settings of a PEFT config that say where it goes."""
        if not self.layers.is_plain:
            return self.layers.settings(denoiser)
        return {} if self.layers.target_modules is None else {"target_modules": list(self.layers.target_modules)}


@dataclass(frozen=True)
class FullFineTuning:
    """All weights of the denoiser: the ceiling that adapters are measured against."""

    loading = "load it with the denoiser's from_pretrained(...)"

    def add(self, denoiser: nn.Module) -> None:
        """Let everything that is a floating point number train."""
        for parameter in denoiser.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        cast_training_params(denoiser, torch.float32)

    def save(self, pipe: Any, folder: Path) -> None:
        """Write the denoiser as diffusers does, whole or not at all."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            with os_errors(temporary):
                _denoiser_of(pipe)[1].save_pretrained(temporary)
            for path in temporary.iterdir():
                sync(path)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError as error:
            raise FeraError(f"cannot write the denoiser to {folder}: {error.strerror or error}") from error

    def restore(self, denoiser: nn.Module, folder: Path) -> None:
        """Read the weights."""
        denoiser.load_state_dict(_saved(denoiser, folder).state_dict())

    def load(self, pipe: Any, folder: Path) -> None:
        """Put them into a pipeline's own denoiser."""
        self.restore(_denoiser_of(pipe)[1], folder)

    def routings(self, denoiser: nn.Module) -> Any:
        """Nothing is routed."""
        return _nothing_routed()


def _denoiser_of(pipe: Any) -> tuple[str, Any]:
    """The denoiser that training adapts, and its name."""
    return next(iter(denoisers(pipe).items()))


def _saved(denoiser: nn.Module, folder: Path) -> nn.Module:
    cls: Any = type(denoiser)
    try:
        return cls.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise FeraError(f"cannot read the denoiser in {folder}: {str(error).splitlines()[0]}") from error


@contextmanager
def _nothing_routed() -> Iterator[list[Routing]]:
    yield []
