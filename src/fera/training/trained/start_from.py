"""`adapter.start_from`: experts that begin as an adapter that exists, routed or plain."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fera.adapters.file import open_adapter
from fera.config import AdapterConfig
from fera.errors import FeraError
from fera.format import CONFIG, METADATA_KEY, WEIGHTS
from fera.models.families import trained_denoiser
from fera.models.layers import Layers, settings_for
from fera.pipelines.plain_loras import LoraPair, read_plain_lora
from fera.tuner import FeraConfig

# Of a configuration's settings, those that an adapter that goes on may still have anew.
_OWN = ("component", "lora_dropout", "top_k", "router_init", "router_entropy", "start_from", "plain", "full")


@dataclass(frozen=True)
class Start:
    """What a fresh adapter begins as.

    Args:
        config: its config, with the layers by their names.
        tensors: its weights by their keys in the denoiser, as PEFT saves them; None where `pairs` make them.
        pairs: a plain LoRA by layer, which each expert becomes.
    """

    config: FeraConfig
    tensors: dict[str, Tensor] | None = None
    pairs: dict[str, LoraPair] | None = None

    @property
    def has_router(self) -> bool:
        """Whether the router begins as a trained one."""
        return self.tensors is not None

    def __str__(self) -> str:
        if self.pairs is None:
            return "a fera adapter, experts and router"
        ranks = sorted({pair.rank for pair in self.pairs.values()})
        what = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return f"a plain LoRA of {what} in {len(self.pairs)} layers, which each expert is at first"

    def apply(self, denoiser: nn.Module, adapter_name: str) -> None:
        """Give the adapter of a denoiser, which was made of `config`, its weights."""
        if self.tensors is not None:
            set_peft_model_state_dict(denoiser, dict(self.tensors), adapter_name)
        else:
            _seed(denoiser, adapter_name, self.config, self.pairs or {})


def open_start(config: AdapterConfig, pipe: Any) -> Start | None:
    """Read what a configuration's adapter starts from; None where it starts anew.

    Args:
        config: the section of the configuration.
        pipe: the base; it is left as it was.

    Raises:
        FeraError: nothing is there, it is of another base, or settings in the configuration contradict it.
    """
    if config.start_from is None:
        return None
    name, denoiser = trained_denoiser(pipe, config.component)
    try:
        if _is_routed(config.start_from):
            return _from_adapter(config)
        return _from_lora(config, denoiser, read_plain_lora(pipe, name, config.start_from))
    except FeraError as error:
        raise FeraError(f"adapter.start_from: {error}") from error


def _from_adapter(config: AdapterConfig) -> Start:
    assert config.start_from is not None
    file = open_adapter(config.start_from)
    defaults = AdapterConfig()
    theirs = file.config.to_dict()
    for name, value in config:
        if name not in _OWN and value not in (getattr(defaults, name), _plain(theirs.get(name))):
            raise FeraError(
                f"adapter.{name} is {value!r}, but {config.start_from} goes on as it is, with "
                f"{_plain(theirs.get(name))!r}: leave it out"
            )
    return Start(replace(file.config, lora_dropout=config.lora_dropout, inference_mode=False), tensors=file.tensors())


def _from_lora(config: AdapterConfig, denoiser: nn.Module, pairs: dict[str, LoraPair]) -> Start:
    if config.expert is not None:
        raise FeraError("experts of a plain LoRA are LoRAs: leave adapter.expert out")
    layers = list(pairs)
    if config.target_modules or config.exclude_modules or config.blocks:
        layers = Layers(config.target_modules, config.exclude_modules, config.blocks).names(denoiser)
        if left := [name for name in pairs if name not in layers]:
            raise FeraError(
                f"{config.start_from} adapts {left[0]}, which adapter.target_modules, exclude_modules and blocks leave "
                "out; leave these keys out to adapt its layers"
            )
    if config.rank_pattern or config.alpha_pattern or config.ranks:
        raise FeraError("the ranks are those of its layers: leave adapter.rank_pattern, alpha_pattern and ranks out")
    ranks = {name: max(config.r, pairs[name].rank if name in pairs else 0) for name in layers}
    common = Counter(ranks.values()).most_common(1)[0][0]
    named = {"target_modules", "exclude_modules", "blocks", "start_from", "plain", "full", "router_init", "top_k"}
    settings = config.model_dump(exclude=named | {"router_entropy", "r", "rank_pattern", "alpha_pattern", "expert"})
    others = {name: rank for name, rank in ranks.items() if rank != common}
    placed: dict[str, Any] = {name: set(value) for name, value in settings_for(denoiser, layers).items()}
    return Start(FeraConfig(r=common, rank_pattern=others, **placed, **settings), pairs=pairs)


@torch.no_grad()
def _seed(denoiser: nn.Module, adapter_name: str, config: FeraConfig, pairs: dict[str, LoraPair]) -> None:
    """Make each expert the plain LoRA; further ranks of an expert stay fresh, and add nothing.

    A layer's experts are stacked along the rank axis: expert e has the ranks from e·r on.
    """
    # Experts without a gate add up: each has its share of the LoRA.
    parts = 1 if config.has_gate else config.num_experts
    for name, pair in pairs.items():
        layer: Any = denoiser.get_submodule(name)
        down, up = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        rank = len(down) // config.num_experts
        up.zero_()
        for expert in range(config.num_experts):
            ranks = slice(expert * rank, expert * rank + pair.rank)
            down[ranks] = pair.down.to(down)
            # At a uniform gate, and while experts are equal at any gate, their mean is what the LoRA adds.
            up[:, ranks] = (pair.up * (pair.scale / layer.scaling[adapter_name] / parts)).to(up)


def _is_routed(source: str) -> bool:
    """Whether files are of a routed adapter, as far as one sees without reading them; a Hub id is taken for one."""
    path = Path(source)
    for folder in (path, path / "adapter"):
        if (folder / CONFIG).is_file():
            try:
                settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise FeraError(f"{folder / CONFIG} cannot be read: {error}") from error
            return isinstance(settings, dict) and settings.get("peft_type") == "FERA"
        if (folder / WEIGHTS).is_file():
            path = folder / WEIGHTS
    if not path.is_file():
        return not path.exists()
    try:
        with safe_open(path, framework="numpy") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise FeraError(f"{path} is no safetensors file that can be read: {error}") from error


def _plain(value: Any) -> Any:
    """A setting of an adapter as a configuration has it."""
    return sorted(value) if isinstance(value, set) else value
