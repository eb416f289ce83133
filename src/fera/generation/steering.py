"""How each adapter acts while pictures are drawn: its weights, its gate, its experts, from texts of a command line."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fera.errors import FeraError
from fera.pipelines.experts import fixed_gate, weighted_experts

# Words for an adapter that is left as it is.
ROUTED, ALL = "routed", "all"
_MOST_WEIGHTS = 64


@dataclass(frozen=True)
class AdapterUse:
    """An adapter, and how it acts.

    Args:
        path: folder, file or Hub id.
        weights: at least one; several are spread over the denoising steps.
        gate: "routed", "uniform", or E weights that sum to 1.
        experts: a factor for the gate of each expert; empty for all as they are.
    """

    path: str
    weights: tuple[float, ...] = (1.0,)
    gate: str | tuple[float, ...] = ROUTED
    experts: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """Path and weights as `--adapter` takes them."""
        return f"{self.path}={':'.join(f'{weight:g}' for weight in self.weights)}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        gate = self.gate if isinstance(self.gate, str) else list(self.gate)
        return {"path": self.path, "weights": list(self.weights), "gate": gate, "experts": list(self.experts)}


def read_uses(
    adapters: Sequence[tuple[str, float | Sequence[float]]], gates: Sequence[str], experts: Sequence[str]
) -> list[AdapterUse]:
    """Adapters with what was said of their gates.

    Args:
        adapters: path, and weight or weights, of each.
        gates: "routed", "uniform" or weights such as "0.2,0.3,0.5", one an adapter; none leaves all of them routed.
        experts: "all", or a factor an expert such as "1,0,1"; likewise.

    Raises:
        FeraError: not as many as adapters, or one cannot be read.
    """
    for name, given in (("gates", gates), ("experts", experts)):
        if given and len(given) != len(adapters):
            raise FeraError(
                f"`{name}` was given {len(given)} times for {len(adapters)} adapters: give one each, in order"
            )
    chosen = [_gate(text) for text in gates] or [ROUTED] * len(adapters)
    factors = [() if text == ALL else _numbers(text, "experts") for text in experts] or [()] * len(adapters)
    return [
        AdapterUse(path, (weight,) if isinstance(weight, int | float) else tuple(weight), gate, scale)
        for (path, weight), gate, scale in zip(adapters, chosen, factors, strict=True)
    ]


def parse_adapter(text: str) -> tuple[str, float]:
    """Read `PATH` or `PATH=WEIGHT`.

    Raises:
        FeraError: the weight is not a number, or there are several.
    """
    path, weights = parse_weights(text)
    if len(weights) > 1:
        raise FeraError(f"`adapters` {text}: one weight is taken here; those along the steps are for drawing")
    return path, weights[0]


def parse_weights(text: str) -> tuple[str, tuple[float, ...]]:
    """Read `PATH`, `PATH=WEIGHT` or `PATH=WEIGHT:WEIGHT…`.

    Raises:
        FeraError: a weight is not a number, or there are too many.
    """
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, (1.0,)
    try:
        values = tuple(float(part) for part in weight.split(":"))
    except ValueError:
        raise FeraError(
            f"`adapters` {text}: the weight {weight!r} is not a number, and there is no such path"
        ) from None
    if not all(map(math.isfinite, values)):
        raise FeraError(f"`adapters` {text}: the weight must be finite")
    if len(values) > _MOST_WEIGHTS:
        raise FeraError(f"`adapters` {text[:80]}…: give at most {_MOST_WEIGHTS} weights along the steps")
    return path, values


@contextmanager
def steered(pipe: Any, uses: Sequence[tuple[str, AdapterUse]]) -> Iterator[None]:
    """Have adapters act as was said, inside the block.

    Args:
        pipe: the pipeline that holds them.
        uses: names of the adapters in it, and how they act.

    Raises:
        FeraError: an adapter has no gate, or another number of experts.
    """
    with ExitStack() as stack:
        for name, use in uses:
            if use.gate != ROUTED:
                stack.enter_context(fixed_gate(pipe, use.gate, adapter_name=name))
            if use.experts:
                stack.enter_context(weighted_experts(pipe, use.experts, adapter_name=name))
        yield


def _gate(text: str) -> str | tuple[float, ...]:
    return text if text in (ROUTED, "uniform") else _numbers(text, "gates")


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        words = '"routed", "uniform" or weights such as 0.2,0.3,0.5' if name == "gates" else '"all" or 1,0,1'
        raise FeraError(f"`{name}` {text} cannot be read; give {words}") from None
