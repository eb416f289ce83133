"""Soft frequency router: from the shares of the frequency bands to the weights of the experts."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fera.errors import FeraError

# Mean share of the gate from which on one expert is as good as alone.
COLLAPSE = 0.8


class SoftFrequencyRouter(nn.Module):
    r"""Turns a frequency-energy indicator into one gate for all adapted layers.

    .. math:: g = \mathrm{softmax}\bigl(W_2\,\mathrm{relu}(W_1 e + b_1) + b_2) / \tau\bigr)

    The router stays in float32 when the model around it is cast to half precision, and computes in float32 under
    autocast: it has a few hundred parameters, and its softmax decides over every layer.

    Args:
        num_bands: K, entries of the indicator, or of whatever else `fera.FeraConfig` has it read; at least 1.
        num_experts: E, at least 1.
        hidden_features: width of the hidden layer, at least 1.
        temperature: :math:`\tau`, above 0; smaller is closer to choosing one expert.

    Raises:
        FeraError: an argument is out of its range.

    Source:
        arXiv 2511.17979.
    """

    def __init__(
        self, num_bands: int = 3, num_experts: int = 3, hidden_features: int = 64, temperature: float = 0.7
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_bands", num_bands, 1),
            ("num_experts", num_experts, 1),
            ("hidden_features", hidden_features, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise FeraError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not 0 < temperature < float("inf"):
            raise FeraError(f"temperature must be above 0 and finite, got {temperature!r}")
        self.temperature = float(temperature)
        self.hidden = _Linear(num_bands, hidden_features)
        self.output = _Linear(hidden_features, num_experts)

    def forward(self, indicator: Tensor) -> Tensor:
        """Gate of each sample.

        Args:
            indicator: shape (B, K).

        Returns:
            Shape (B, E), float32, on the indicator's device; non-negative, each row sums to 1.
        """
        # With model offloading the latent can be on another device than a router that waits for its turn.
        device = self.hidden.weight.device if self.hidden.weight.device.type != "meta" else indicator.device
        with torch.autocast(device.type, enabled=False):
            shares = indicator.to(device=device, dtype=torch.float32)
            logits = self.output(torch.relu(self.hidden(shares)))
            return torch.softmax(logits / self.temperature, dim=-1).to(indicator.device)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        r"""Make the logits a given linear function of the input, to learn on from there.

        Two hidden units hold each entry of the input, one its positive and one its negative part; the others keep their
        random input weights and start without a say.

        Args:
            weight: shape (E, K).
            bias: shape (E,); the gate is softmax(indicator @ weight.T + bias), whatever the temperature.

        Raises:
            FeraError: the hidden layer is narrower than 2 K.
        """
        entries = self.hidden.in_features
        if self.hidden.out_features < 2 * entries:
            raise FeraError(
                f"router_features must be at least {2 * entries} for a router that starts as a partition of "
                f"{entries} entries, got {self.hidden.out_features}"
            )
        both = torch.cat([torch.eye(entries), -torch.eye(entries)]).to(self.hidden.weight)
        self.hidden.weight[: 2 * entries] = both
        self.hidden.bias[: 2 * entries] = 0
        self.output.weight.zero_()
        self.output.weight[:, : 2 * entries] = (self.temperature * torch.cat([weight, -weight], dim=1)).to(both)
        self.output.bias.copy_(self.temperature * bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SoftFrequencyRouter":
        # Follow `model.to(device)`, but not `model.half()`: an empty probe tells where `fn` moves a tensor to.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor[:0])
            if moved.dtype != tensor.dtype and not tensor.is_meta:
                return tensor.to(moved.device)
            return fn(tensor)

        return super()._apply(move, recurse)


class _Linear(nn.Module):
    """A linear layer that is no `nn.Linear`: diffusers' layerwise casting, which keeps those in 8 bits, passes it by.

    Args:
        in_features: entries of its input.
        out_features: entries of its output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        start = nn.Linear(in_features, out_features)
        self.weight, self.bias = start.weight, start.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (..., out_features) for (..., in_features)."""
        return nn.functional.linear(inputs, self.weight, self.bias)


def gate_entropy(gates: Tensor) -> Tensor:
    """Entropy of gates in units of its maximum: 1 for equal weights, 0 for a single expert.

    Args:
        gates: shape (..., E), each sums to 1.

    Returns:
        Shape (...); 1 where E is 1.
    """
    if gates.shape[-1] == 1:
        return torch.ones_like(gates[..., 0])
    return torch.special.entr(gates).sum(dim=-1) / math.log(gates.shape[-1])
