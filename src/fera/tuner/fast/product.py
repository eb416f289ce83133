r"""What a routed linear layer computes: the base's output and the experts' gated sum, and the gradients of both.

.. math:: y = W x + b + B \bigl(w \odot (A x)\bigr)

with a weight w for each rank of each sample. It knows tensors alone, no layers.
"""

from typing import Any

import torch
from torch import Tensor, nn


def routed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The layer's output.

    Args:
        x: shape (N, ..., in).
        weight: the weight of the base, shape (out, in).
        bias: the bias of the base, shape (out,), or None.
        a: the experts' A, stacked, shape (E r, in).
        b: the experts' B, stacked, shape (out, E r).
        weights: the weights of the ranks, shape (N, 1, E r).

    Returns:
        Shape (N, ..., out). All arguments have one dtype, which is its too.
    """
    tokens = x if x.ndim == 3 else x.reshape(len(x), x.shape[1:-1].numel(), x.shape[-1])
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if frozen and torch.is_grad_enabled() and not _traced():
        output: Tensor = _RoutedLinear.apply(tokens, weight, bias, a, b, weights)
    else:
        output = _product(tokens, weight, bias, a, b, weights)[0]
    return output if x.ndim == 3 else output.view(*x.shape[:-1], len(weight))


def routed_rows(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The same in the fewest calls, with autograd's own backward pass: more passes over the input, and more memory.

    Args:
        x: shape (N, ..., in).
        weight: as `routed_linear` has it.
        bias: likewise.
        a: likewise.
        b: likewise.
        weights: the weights of the ranks for each row of x, in its order, shape (rows, E r).

    Returns:
        Shape (N, ..., out).
    """
    inputs = x.flatten(0, -2)
    output = nn.functional.linear(inputs, weight, bias)
    output.addmm_(nn.functional.linear(inputs, a) * weights, b.t())
    return output.view(*x.shape[:-1], len(weight))


def _traced() -> bool:
    """Whether a compiler or a transform of `torch.func` reads the steps: both want them plain."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (N, tokens, out) and ranks before their weights, (N, tokens, E r)."""
    ranks = nn.functional.linear(x, a)
    output = nn.functional.linear(x.flatten(0, 1), weight, bias)
    # Adding in place spares a pass over the output and a second one in memory. To a view of it, autograd would copy.
    output.addmm_((ranks * weights).flatten(0, 1), b.t())
    return output.view(*x.shape[:2], len(weight)), ranks


class _RoutedLinear(torch.autograd.Function):
    """`_product` under a frozen base, with a backward pass that keeps the ranks once.

    Autograd would keep them twice, before and after their weights, and add up the two parts of the input's gradient in
    a pass of its own. `setup_context` would cost a small layer what this saves.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor
    ) -> Tensor:
        output, ranks = _product(x, weight, bias, a, b, weights)
        ctx.save_for_backward(x, weight, a, b, weights, ranks)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, weights, ranks = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, needs_weights = ctx.needs_input_grad
        inputs, slopes = x.flatten(0, 1), slope.flatten(0, 1)
        if torch.is_grad_enabled():  # a second derivative is asked for, and what is kept of the ranks has none
            ranks = nn.functional.linear(x, a)
        of_weighted = torch.matmul(slope, b)
        of_ranks = (of_weighted * weights).flatten(0, 1)
        of_x = torch.mm(slopes, weight).addmm_(of_ranks, a).view(x.shape) if needs_x else None
        of_a = torch.mm(of_ranks.t(), inputs) if needs_a else None
        of_b = torch.mm(slopes.t(), (ranks * weights).flatten(0, 1)) if needs_b else None
        of_weights = (ranks * of_weighted).sum(dim=1, keepdim=True) if needs_weights else None
        return of_x, None, None, of_a, of_b, of_weights
