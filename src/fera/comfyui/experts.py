"""Experts of a layer in ComfyUI: what they add to its output, by how much each of them weighs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.errors import FeraError

Turn = Callable[[Tensor], Tensor]


class BaseLayer(Protocol):
    """A layer of ComfyUI's model as it is without experts, or the part of its outputs that some are for."""

    module: Any

    def output(self, x: Tensor) -> Tensor:
        """What it answers."""

    def product(self, x: Tensor) -> Tensor:
        """The same without its bias."""


class LayerExperts(Protocol):
    """The experts of one layer."""

    @property
    def outputs(self) -> int | None:
        """How many outputs they add to; None where any will do."""

    @property
    def columns(self) -> int | None:
        """Columns of the weight that they are for: inputs, times the size of a kernel; None where any will do."""

    def turned(self, turn: Turn) -> Any:
        """For a layer whose outputs are in another order, which a function of the weight makes."""

    def shaped(self, kernel: Sequence[int] | None) -> Any:
        """In a layer's own form, by the size of its kernel; None for a linear layer."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Any:
        """On a device and in a precision."""


@dataclass(frozen=True)
class Experts:
    """LoRAs, one behind the other along the ranks.

    Args:
        down: shape (E r, in), or (E r, in, h, w) of a convolution.
        up: shape (out, E r), or (out, E r, 1, 1); times the scale.
    """

    down: Tensor
    up: Tensor

    @property
    def outputs(self) -> int:
        """How many outputs they add to."""
        return len(self.up)

    @property
    def columns(self) -> int:
        """Columns of the weight that they are for."""
        return self.down[0].numel()

    def turned(self, turn: Turn) -> "Experts":
        """For a layer whose outputs are in another order."""
        return Experts(self.down, turn(self.up))

    def shaped(self, kernel: Sequence[int] | None) -> "Experts":
        """In a layer's own form: 1 x 1 convolutions of the one are linear layers of the other."""
        if kernel is not None and self.down.ndim == 2:
            ones = (1,) * len(kernel)
            return Experts(self.down.reshape(*self.down.shape, *ones), self.up.reshape(*self.up.shape, *ones))
        if kernel is None and self.down.ndim > 2 and self.down[0, 0].numel() == 1:
            return Experts(self.down.flatten(1), self.up.flatten(1))
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> "Experts":
        """On a device and in a precision."""
        return Experts(self.down.to(device, dtype), self.up.to(device, dtype))


@dataclass(frozen=True)
class WholeWeights:
    r"""Experts that change all of a weight, formed from a few numbers at each use: LoHa, LoKr.

    .. math:: \sum_e g_e \Delta W_e x

    Args:
        parts: of each expert, by the names of its scheme.
        form: that of one expert to its change of the weight, shape (out, columns).
        turn: puts its outputs in the layer's order.
        kernel: size of the layer's kernel; None for a linear layer.
    """

    parts: tuple[Mapping[str, Tensor], ...]
    form: Callable[[Mapping[str, Tensor]], Tensor]
    turn: Turn | None = None
    kernel: tuple[int, ...] | None = None

    @property
    def outputs(self) -> int:
        """How many outputs they add to."""
        change = self.form(self.parts[0])
        return len(change if self.turn is None else self.turn(change))

    @property
    def columns(self) -> int:
        """Columns of the weight that they are for."""
        return self.form(self.parts[0]).shape[1]

    def turned(self, turn: Turn) -> "WholeWeights":
        """For a layer whose outputs are in another order."""
        return replace(self, turn=turn)

    def shaped(self, kernel: Sequence[int] | None) -> "WholeWeights":
        """In a layer's own form."""
        return replace(self, kernel=None if kernel is None else tuple(kernel))

    def to(self, device: torch.device, dtype: torch.dtype) -> "WholeWeights":
        """On a device and in a precision."""
        moved = ({name: part.to(device, dtype) for name, part in expert.items()} for expert in self.parts)
        return replace(self, parts=tuple(moved))

    def change(self, x: Tensor, gates: Tensor, is_one: bool, base: BaseLayer) -> Tensor:
        """What they add.

        Args:
            x: the layer's input, shape (N, ..., in) or (N, in, H, W).
            gates: of each row, shape (N, E).
            is_one: whether all rows have one gate.
            base: the layer without them.
        """
        deltas = [self._delta(expert) for expert in self.parts]
        if is_one:
            return self._product(x, sum(gate * delta for gate, delta in zip(gates[0], deltas, strict=True)), base)
        outputs = (self._product(x, delta, base) for delta in deltas)
        return sum(_of_rows(gate, x) * output for gate, output in zip(gates.T, outputs, strict=True))  # type: ignore[return-value]

    def _delta(self, expert: Mapping[str, Tensor]) -> Tensor:
        delta = self.form(expert)
        if self.kernel is not None:
            delta = delta.reshape(len(delta), -1, *self.kernel)
        return delta if self.turn is None else self.turn(delta)

    def _product(self, x: Tensor, weight: Any, base: BaseLayer) -> Tensor:
        if self.kernel is None:
            return functional.linear(x, weight)
        layer = base.module
        return _convolution(self.kernel)(x, weight, None, layer.stride, layer.padding, layer.dilation)


@dataclass(frozen=True)
class Rotations:
    r"""Experts that rotate a layer's input before its weight: OFT.

    .. math:: W \sum_e g_e (R_e - 1) x

    Args:
        matrices: shape (E, blocks, size, size): an input is cut into blocks, and each is multiplied from the left.
        is_shared: whether the one block that there is stands for all.
    """

    matrices: Tensor
    is_shared: bool

    @property
    def outputs(self) -> None:
        """Any will do."""
        return None

    @property
    def columns(self) -> int | None:
        """Columns of the weight that they are for; None where one block stands for all."""
        return None if self.is_shared else self.matrices.shape[1] * self.matrices.shape[2]

    def turned(self, turn: Turn) -> "Rotations":
        """As it is: outputs are not looked at."""
        return self

    def shaped(self, kernel: Sequence[int] | None) -> "Rotations":
        """As it is, for linear layers and convolutions of single places."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> "Rotations":
        """On a device and in a precision."""
        return replace(self, matrices=self.matrices.to(device, dtype))

    def change(self, x: Tensor, gates: Tensor, is_one: bool, base: BaseLayer) -> Tensor:
        """As `WholeWeights.change`."""
        is_convolution = hasattr(base.module, "kernel_size")
        rows = x.movedim(1, -1) if is_convolution else x
        moves = self.matrices - torch.eye(self.matrices.shape[-1], device=x.device, dtype=x.dtype)
        if is_one:
            moved = self._moved(rows, torch.einsum("e,e...->...", gates[0], moves))
        else:
            moved = sum(
                _of_rows(gate, rows) * self._moved(rows, move) for gate, move in zip(gates.T, moves, strict=True)
            )
        return base.product(moved.movedim(-1, 1) if is_convolution else moved)

    def _moved(self, rows: Tensor, matrices: Tensor) -> Any:
        blocks = rows.unflatten(-1, (-1, matrices.shape[-1]))
        return torch.einsum("...nk,nkc->...nc", blocks, matrices).flatten(-2)


@dataclass(frozen=True)
class Scalings:
    r"""Experts that scale a layer's outputs: (IA)³.

    .. math:: \sum_e g_e (l_e - 1) \odot f(x)

    Args:
        factors: shape (E, out).
    """

    factors: Tensor

    @property
    def outputs(self) -> int:
        """How many outputs they scale."""
        return self.factors.shape[1]

    @property
    def columns(self) -> None:
        """Any will do."""
        return None

    def turned(self, turn: Turn) -> "Scalings":
        """For a layer whose outputs are in another order."""
        return Scalings(turn(self.factors.T).T)

    def shaped(self, kernel: Sequence[int] | None) -> "Scalings":
        """As it is."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> "Scalings":
        """On a device and in a precision."""
        return Scalings(self.factors.to(device, dtype))

    def change(self, x: Tensor, gates: Tensor, is_one: bool, base: BaseLayer) -> Tensor:
        """As `WholeWeights.change`."""
        return _scaled(base.output(x), gates, self.factors - 1, x.ndim, base.module)


@dataclass(frozen=True)
class Directions:
    r"""Experts that keep the length of a weight's rows and turn their direction by a LoRA: DoRA.

    .. math:: W_e = m_e \odot \frac{W + B_e A_e}{\lVert W + B_e A_e \rVert}

    Args:
        lora: their LoRAs.
        lengths: :math:`m`, shape (E, out).
    """

    lora: Experts
    lengths: Tensor
    # How much longer rows become, and the up matrix at that: known once the base's weights are there.
    _found: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def outputs(self) -> int:
        """How many outputs they add to."""
        return self.lora.outputs

    @property
    def columns(self) -> int:
        """Columns of the weight that they are for."""
        return self.lora.columns

    def turned(self, turn: Turn) -> "Directions":
        """For a layer whose outputs are in another order."""
        return Directions(self.lora.turned(turn), turn(self.lengths.T).T)

    def shaped(self, kernel: Sequence[int] | None) -> "Directions":
        """In a layer's own form."""
        return Directions(self.lora.shaped(kernel), self.lengths)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Directions":
        """On a device and in a precision; lengths stay in that of the file."""
        return Directions(self.lora.to(device, dtype), self.lengths.to(device))

    def change(self, x: Tensor, gates: Tensor, is_one: bool, base: BaseLayer) -> Tensor:
        """As `WholeWeights.change`."""
        if not self._found:
            growth = self._growth(base).to(x.dtype)
            rank = len(self.lora.down) // len(growth)
            each = growth.repeat_interleave(rank, dim=0).T  # of each output and rank
            up = self.lora.up * each.reshape(*each.shape, *[1] * (self.lora.up.ndim - 2))
            self._found.update(growth=growth, up=up)
        growth, up = self._found["growth"], self._found["up"]
        rank = len(self.lora.down) // len(growth)
        weights = gates.repeat_interleave(rank, dim=1)
        if up.ndim == 2:
            ranks = functional.linear(x, self.lora.down)
            added = functional.linear(ranks * weights.view(len(x), *[1] * (x.ndim - 2), -1), up)
        else:
            layer, convolve = base.module, _convolution(up.shape[2:])
            ranks = convolve(x, self.lora.down, None, layer.stride, layer.padding, layer.dilation)
            added = convolve(ranks * weights.view(len(x), -1, *[1] * (x.ndim - 2)), up)
        return added + _scaled(base.product(x), gates, growth - 1, x.ndim, base.module)

    def _growth(self, base: BaseLayer) -> Tensor:
        """The length that is wanted over that which the LoRA leaves, shape (E, out), float32."""
        weight = _weight_of(base, self.lora).float()
        down, up = self.lora.down.float().flatten(1), self.lora.up.float().flatten(1)
        count = len(self.lengths)
        pairs = zip(down.chunk(count), up.chunk(count, dim=1), strict=True)
        rows = [torch.linalg.vector_norm(weight + one_up @ one_down, dim=1) for one_down, one_up in pairs]
        return self.lengths.float() / torch.stack(rows)


def _weight_of(base: BaseLayer, lora: Experts) -> Tensor:
    """A layer's weight, shape (out, columns), however it is kept."""
    if lora.up.ndim == 2:
        inputs = lora.down.shape[1]
        return base.product(torch.eye(inputs, device=lora.down.device, dtype=lora.down.dtype)).T
    weight: Any = getattr(base.module, "weight", None)
    if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point() or weight.element_size() == 1:
        raise FeraError(
            "experts of DoRA need the lengths of a convolution's weights, which this model keeps in few bits: take the "
            "model in half precision, or write a LoRA by fera export --base"
        )
    return weight.to(lora.down.device).flatten(1)


def _scaled(output: Tensor, gates: Tensor, factors: Tensor, dimensions: int, module: Any) -> Tensor:
    weights = gates @ factors.to(gates.dtype)
    if hasattr(module, "kernel_size"):
        return output * weights.view(*weights.shape, *[1] * (dimensions - 2))
    return output * weights.view(len(weights), *[1] * (dimensions - 2), -1)


def _of_rows(gate: Tensor, rows: Tensor) -> Tensor:
    return gate.view(-1, *[1] * (rows.ndim - 1))


def _convolution(kernel: Sequence[int]) -> Any:
    return (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
