"""The LoRA of one layer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """The LoRA of one layer: its weight changes by `up @ down`, no further scale.

    Args:
        down: shape (R, in), or (R, in, h, w) of a convolution.
        up: shape (out, R), or (out, R, 1, 1).
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """R, all experts' ranks together."""
        return self.down.shape[0]

    @property
    def is_convolution(self) -> bool:
        """Whether the layer is a convolution."""
        return self.down.ndim == 4
