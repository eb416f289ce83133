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
        weight: of the base, shape (out, in).
        bias: of the base, shape (out,), or None.
        a: the experts' A, stacked, shape (E r, in).
        b: the experts' B, stacked, shape (out, E r).
        weights: of the ranks, shape (N, E r).

    Returns:
        Shape (N, ..., out). All arguments have one dtype, which is its too.
    """
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if frozen and torch.is_grad_enabled() and not _traced():
        return _RoutedLinear.apply(x, weight, bias, a, b, weights)
    return _product(x, weight, bias, a, b, weights)[0]


def routed_rows(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The same in the fewest calls, with autograd's own backward pass: more passes over the input, and more memory.

    Args:
        x: shape (N, ..., in).
        weight: as `routed_linear` has it.
        bias: likewise.
        a: likewise.
        b: likewise.
        weights: of the ranks for each row of x, in its order, shape (rows, E r).

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
    """Output (N, ..., out) and ranks before their weights, (N, tokens, E r)."""
    inputs = x.flatten(0, -2)
    ranks = _by_sample(torch.mm(inputs, a.t()), x)
    output = nn.functional.linear(inputs, weight, bias)
    # Adding in place spares a pass over the output and a second one in memory. To a view of it, autograd would copy.
    output.addmm_((ranks * weights[:, None]).flatten(0, 1), b.t())
    return output.view(*x.shape[:-1], len(weight)), ranks


def _by_sample(rows: Tensor, x: Tensor) -> Tensor:
    """Rows (N tokens, E r) as (N, tokens, E r), for the N of x, shape (N, ..., in)."""
    return rows.view(len(x), x.shape[1:-1].numel(), rows.shape[1])


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
        inputs, slopes, weights = x.flatten(0, -2), slope.flatten(0, -2), weights[:, None]
        if torch.is_grad_enabled():  # a second derivative is asked for, and what is kept of the ranks has none
            ranks = _by_sample(torch.mm(inputs, a.t()), x)
        of_weighted = _by_sample(torch.mm(slopes, b), x)
        of_ranks = (of_weighted * weights).flatten(0, 1)
        of_x = of_a = of_b = of_weights = None
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(slopes, weight).addmm_(of_ranks, a).view(x.shape)
        if ctx.needs_input_grad[3]:
            of_a = torch.mm(of_ranks.t(), inputs)
        if ctx.needs_input_grad[4]:
            of_b = torch.mm(slopes.t(), (ranks * weights).flatten(0, 1))
        if ctx.needs_input_grad[5]:
            of_weights = (ranks * of_weighted).sum(dim=1)
        return of_x, None, None, of_a, of_b, of_weights
