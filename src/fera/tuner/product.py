r"""What a routed linear layer computes: the base's output and the experts' gated sum, and the gradients of both.

.. math:: y = W x + b + B \bigl(w \odot (A x)\bigr)

with a weight w for each rank of each sample. It knows tensors alone, no layers.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def routed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The layer's output.

    Args:
        x: shape (N, ..., in).
        weight: of the base, shape (out, in).
        bias: of the base, shape (out,), or None.
        a: the experts' A, stacked, shape (E r, in).
        b: the experts' B, stacked, shape (out, E r).
        weights: of the ranks, shape (N, E r).

    Returns:
        Shape (N, ..., out). All arguments have one dtype, which is its too.
    """
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if frozen and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _RoutedLinear.apply(x, weight, bias, a, b, weights)[0]
    return _product(x, weight, bias, a, b, weights)[0]


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (N, ..., out) and ranks before their weights, (N, ..., E r)."""
    ranks = nn.functional.linear(x, a)
    output = nn.functional.linear(x, weight, bias)
    # Adding in place spares a pass over the output and a second one in memory.
    output.flatten(0, -2).addmm_((ranks * _over_tokens(weights, ranks)).flatten(0, -2), b.t())
    return output, ranks


def _over_tokens(weights: Tensor, ranks: Tensor) -> Tensor:
    """Weights (N, E r) in a shape that multiplies ranks (N, ..., E r)."""
    return weights.view(len(weights), *[1] * (ranks.ndim - 2), weights.shape[1])


class _RoutedLinear(torch.autograd.Function):
    """`_product` under a frozen base, with a backward pass that keeps the ranks once.

    Autograd would keep them twice, before and after their weights, and add up the two parts of the input's gradient in
    a pass of its own.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _product(x, weight, bias, a, b, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, a, b, weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, a, b, weights, output[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, weights, ranks = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, and what is kept of the ranks has none
            ranks = nn.functional.linear(x, a)
        slope, weights = slopes[0], _over_tokens(weights, ranks)
        rows = slope.flatten(0, -2)
        weighted_slope = slope @ b
        ranks_slope = weighted_slope * weights
        of_x = of_a = of_b = of_weights = None
        if ctx.needs_input_grad[0]:
            of_x = (rows @ weight).addmm_(ranks_slope.flatten(0, -2), a).view(x.shape)
        if ctx.needs_input_grad[3]:
            of_a = ranks_slope.flatten(0, -2).t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[4]:
            of_b = rows.t() @ (ranks * weights).flatten(0, -2)
        if ctx.needs_input_grad[5]:
            of_weights = (ranks * weighted_slope).flatten(1, -2).sum(dim=1) if x.ndim > 2 else ranks * weighted_slope
        return of_x, None, None, of_a, of_b, of_weights


# `apply` asks for it at every call, and to find it anew takes as long as one of the products of a small layer.
_RoutedLinear.forward.__signature__ = inspect.signature(_RoutedLinear.forward)  # type: ignore[attr-defined]
