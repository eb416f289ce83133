"""What a person sets about a gate: fixed weights, experts left out, a sharper or softer choice, a range of sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fera.errors import FeraError


@dataclass(frozen=True)
class GateControl:
    """How a gate differs from what the router answers.

    Args:
        fixed: one weight an expert in place of the router's; None leaves it to the router.
        muted: experts that do not act, counted from 0; the weights of the others stay as they are.
        temperature: the gate's temperature in relation to that of training, above 0; smaller is closer to choosing one
            expert.
        start: part of sampling from which on the adapter acts, 0 to 1, as ComfyUI counts it.
        end: part of sampling up to which it acts.

    Raises:
        FeraError: a value is out of range.
    """

    fixed: tuple[float, ...] | None = None
    muted: frozenset[int] = frozenset()
    temperature: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise FeraError(f"temperature must be above 0, got {self.temperature:g}")
        if not 0 <= self.start <= self.end <= 1:
            raise FeraError(f"start and end must lie in 0 to 1, start first; got {self.start:g} and {self.end:g}")
        if self.fixed is not None and not all(abs(weight) < float("inf") for weight in self.fixed):
            raise FeraError(f"a fixed gate must hold finite numbers, got {list(self.fixed)}")

    def check(self, num_experts: int, adapter: str) -> None:
        """Hold it against an adapter.

        Raises:
            FeraError: it has another number of experts.
        """
        if self.fixed is not None and len(self.fixed) != num_experts:
            raise FeraError(f"{adapter} has {num_experts} experts, and the fixed gate {len(self.fixed)} weights")
        if beyond := sorted(expert + 1 for expert in self.muted if not 0 <= expert < num_experts):
            raise FeraError(f"{adapter} has {num_experts} experts; there is no expert {beyond[0]}")

    def applied(self, gates: Tensor) -> Tensor:
        """The gate that acts.

        Args:
            gates: the router's, shape (B, E).

        Returns:
            Shape (B, E).
        """
        if self.fixed is not None:
            gates = gates.new_tensor(self.fixed).expand_as(gates)
        elif self.temperature != 1:
            powers = gates ** (1 / self.temperature)
            gates = powers / powers.sum(dim=1, keepdim=True)
        if self.muted:
            heard = torch.ones(gates.shape[1], device=gates.device)
            heard[sorted(self.muted)] = 0
            gates = gates * heard
        return gates


def experts_of(text: str) -> frozenset[int]:
    """Experts that a person lists, "1, 3", counted from 1 there and from 0 here.

    Raises:
        FeraError: it is no list of numbers.
    """
    try:
        return frozenset(int(part) - 1 for part in text.replace(",", " ").split())
    except ValueError:
        raise FeraError(f"experts must be numbers from 1 on, such as '1, 3'; got {text!r}") from None


def weights_of(text: str) -> tuple[float, ...] | None:
    """A fixed gate that a person writes, "0.2, 0.3, 0.5"; None for nothing.

    Raises:
        FeraError: it is no list of numbers.
    """
    parts: Sequence[str] = text.replace(",", " ").split()
    try:
        return tuple(float(part) for part in parts) or None
    except ValueError:
        raise FeraError(f"a fixed gate must be one number an expert, such as '0.2, 0.3, 0.5'; got {text!r}") from None
