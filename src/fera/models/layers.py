"""Which layers of a denoiser an adapter goes into."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from fera.errors import FeraError
from fera.format import GATE
from fera.models.registry import find
from fera.support.patterns import PatternError, ending, folded, inside

# Words in the place of patterns.
ALL_LINEAR, ATTENTION = "all-linear", "attention"

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Layers:
    """A choice of layers, as a configuration makes it.

    Args:
        target_modules: patterns for the ends of their names, "all-linear" or "attention"; None for the defaults of the
            class.
        exclude_modules: patterns for the ends of names that are left out.
        blocks: patterns for the blocks that they must lie in, from the beginning of a name: "transformer_blocks.8-23",
            or "8-23" for any list of blocks; empty for all.
    """

    target_modules: Sequence[str] | None = None
    exclude_modules: Sequence[str] = ()
    blocks: Sequence[str] = ()

    @property
    def is_plain(self) -> bool:
        """Whether PEFT understands it as it is: the default, or ends of names."""
        targets = self.target_modules or ()
        are_names = ATTENTION not in targets and all(target.replace(".", "_").isidentifier() for target in targets)
        return are_names and not (self.exclude_modules or self.blocks)

    def names(self, denoiser: nn.Module) -> list[str]:
        """Names of the chosen layers.

        Raises:
            FeraError: a pattern matches nothing, or nothing is left.
        """
        names = list(adaptable(denoiser))
        where = type(denoiser).__name__
        chosen = self._targets(denoiser, names)
        within = _matching(self.blocks, names, inside, "blocks", f"{where} has: {', '.join(blocks_of(names))}")
        without = _matching(self.exclude_modules, names, ending, "exclude_modules", f"{where} has: {listed(names)}")
        left = [
            name for name in names if name in chosen and (not self.blocks or name in within) and name not in without
        ]
        if not left:
            raise FeraError(
                f"no layer of {where} is left to adapt: the {len(chosen)} that `target_modules` names are not in "
                "`blocks`, or are in `exclude_modules`"
            )
        return left

    def settings(self, denoiser: nn.Module) -> dict[str, list[str]]:
        """The choice as settings of a PEFT config, as `settings_for` gives them."""
        return settings_for(denoiser, self.names(denoiser))

    def _targets(self, denoiser: nn.Module, names: Sequence[str]) -> set[str]:
        where = type(denoiser).__name__
        if self.target_modules is None:
            return _known(find(denoiser).target_modules, names)
        wanted = [target for target in self.target_modules if target not in (ALL_LINEAR, ATTENTION)]
        found = _matching(wanted, names, ending, "target_modules", f"{where} has: {listed(names)}")
        if ATTENTION in self.target_modules:
            found |= _known(find(denoiser).attention, names)
        if ALL_LINEAR in self.target_modules:
            layers = adaptable(denoiser)
            found |= {name for name in names if isinstance(layers[name], nn.Linear)}
        return found


def choose_layers(
    denoiser: nn.Module,
    target_modules: Sequence[str] | None = None,
    *,
    exclude_modules: Sequence[str] = (),
    blocks: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Settings of a PEFT config for the layers that patterns choose: `FeraConfig(**fera.choose_layers(...))`.

    In a pattern `*` stands for any characters and a part `8-23` for the numbers from 8 to 23.

    Args:
        denoiser: the model that is to get the adapter.
        target_modules: patterns for the ends of layers' names, "*" for every layer, "all-linear" for the linear ones,
            "attention" for those of the attention; None for the defaults of the class.
        exclude_modules: patterns for the ends of names that are left out.
        blocks: patterns for the blocks that the layers must lie in: "transformer_blocks.8-23", or "8-23" for any list
            of blocks; all when empty.

    Returns:
        `target_modules`, and `exclude_modules` where that is needed to tell them from others; names as they are.

    Raises:
        FeraError: a pattern is none or matches nothing, or no layer is left.
    """
    return Layers(target_modules, exclude_modules, blocks).settings(denoiser)


def default_targets(denoiser: nn.Module) -> list[str]:
    """Layers to adapt when a config names none, as `target_modules` of a PEFT config: ends of names, or names.

    Args:
        denoiser: of a known class.

    Raises:
        FeraError: the class is not known.
    """
    names = list(adaptable(denoiser))
    targets: list[str] = []
    for target in find(denoiser).target_modules:
        targets += sorted(_known([target], names)) if "*" in target else [target]
    return targets


def settings_for(denoiser: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Layers as settings of a PEFT config: `target_modules` and `exclude_modules` with whole names.

    PEFT takes each for the end of a name. So where a layer's name is the end of another's, that one is excluded.

    Args:
        denoiser: the model that is to get the adapter.
        names: names of the layers.
    """
    held, endings = set(names), tuple(f".{name}" for name in names)
    others = [name for name, _ in denoiser.named_modules() if name not in held and name.endswith(endings)]
    return {"target_modules": list(names), **({"exclude_modules": others} if others else {})}


def adaptable(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Layers that experts can go into, by name: linear ones and convolutions that are not of groups."""
    found = {}
    for name, module in denoiser.named_modules():
        is_convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
        is_own = "lora_" in name or name.startswith(f"{GATE}.")
        if (isinstance(module, nn.Linear) or is_convolution) and not is_own:
            found[name.removesuffix(".base_layer")] = module
    return found


def blocks_of(names: Iterable[str]) -> list[str]:
    """Blocks that layers lie in: their names up to the first number, or up to the first dot."""
    found = []
    for name in names:
        *parents, _ = name.split(".")
        end = next((index + 1 for index, part in enumerate(parents) if part.isdigit()), 1)
        if parents:
            found.append(".".join(parents[:end]))
    return folded(found)


def by_name(patterns: Mapping[str, _Value], names: Sequence[str], setting: str) -> dict[str, _Value]:
    """Values of layers by their names, from patterns for the ends of names; the first that matches counts.

    Args:
        patterns: pattern to value.
        names: the layers there are.
        setting: what is set, for the error.

    Raises:
        FeraError: a pattern is none, or matches nothing.
    """
    found: dict[str, _Value] = {}
    for pattern, value in patterns.items():
        for name in sorted(_matching([pattern], names, ending, setting, f"adapted are: {listed(names)}")):
            found.setdefault(name, value)
    return found


def listed(names: Iterable[str]) -> str:
    """Names as one would list them in a message: without the path to their block, each once."""
    short = []
    for name in names:
        parts = name.split(".")
        # A bare index says nothing: keep what it is an index of.
        short.append(".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1])
    return ", ".join(sorted(set(short)))


def _known(patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    """Names that any pattern of a class matches; of those, some are for some of its models alone."""
    compiled = [ending(pattern) for pattern in patterns]
    return {name for name in names if any(pattern.fullmatch(name) for pattern in compiled)}


def _matching(
    patterns: Sequence[str], names: Sequence[str], read: Callable[[str], re.Pattern[str]], setting: str, there: str
) -> set[str]:
    """Names that any pattern matches; each must match one."""
    found: set[str] = set()
    unmatched = []
    for pattern in patterns:
        try:
            compiled = read(pattern)
        except PatternError as error:
            raise FeraError(f"`{setting}`: {error}") from None
        matched = {name for name in names if compiled.fullmatch(name)}
        found |= matched
        if not matched:
            unmatched.append(pattern)
    if unmatched:
        raise FeraError(f"`{setting}` that match nothing: {', '.join(unmatched)}; {there}")
    return found


def shape_of(layer: nn.Module) -> str:
    """A layer's inputs and outputs, for people: "320 to 640", "4 to 320, 3 x 3"."""
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features} to {layer.out_features}"
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return f"{layer.in_channels} to {layer.out_channels}, {' x '.join(map(str, layer.kernel_size))}"


def lora_size(layer: nn.Module) -> int:
    """Parameters of a LoRA of rank 1."""
    if isinstance(layer, nn.Linear):
        return layer.in_features + layer.out_features
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return layer.in_channels * math.prod(layer.kernel_size) + layer.out_channels
