"""Routing by gradients: which experts of a layer a step of the optimizer updates.

All experts act in every forward; what is routed are the updates. AdamW steps as it always does, moments of all experts
included, and then the experts that were not chosen get the weights back that they had before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError


@dataclass(frozen=True)
class StackedExperts:
    """The experts of one layer, stacked along their ranks.

    Args:
        a: shape (R, in), or (R, in, h, w) of a convolution.
        b: shape (out, R), or (out, R, 1, 1).
        ranks: rank of each expert; they sum to R.
    """

    a: nn.Parameter
    b: nn.Parameter
    ranks: tuple[int, ...]

    @property
    def rank(self) -> int:
        """R, the ranks of all experts together."""
        return sum(self.ranks)

    @property
    def weights_of_a_rank(self) -> int:
        """How many weights each rank has in A and B together."""
        return (self.a.numel() + self.b.numel()) // self.rank


class UpdateRouter:
    r"""Lets each step of an AdamW change the top-k experts of each layer alone.

    An expert's score is the decrease of the loss to be expected of its step, to first order and a weight,

    .. math:: \frac{\eta}{N} \sum \frac{m^2}{\sqrt v + \epsilon}

    over its N weights, with AdamW's moments m and v after the step's gradient and its learning rate η. All moments are
    updated at every step; weights (by the step and by weight decay) are those of the chosen experts only. A chosen
    expert's step is AdamW's own, bit for bit: the optimizer does it.

    The moments are not corrected for their start at zero: that is a factor which a layer's experts have in common.

    Args:
        optimizer: over all of the experts' weights; others that it holds are left alone.
        layers: the experts.
        top_k: k, from 1 to the number of experts; all of them make it AdamW.

    Attributes:
        updates: share of the layers in which the last step updated each expert, shape (E,), on the weights' device;
            None before the first step.

    Raises:
        FeraError: the optimizer is no AdamW of PyTorch or does not hold the experts, or there are none, or fewer than
            `top_k`.

    Source:
        MoLF, arXiv 2605.07111.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Sequence[StackedExperts], *, top_k: int) -> None:
        if not isinstance(optimizer, torch.optim.Adam):  # of which AdamW is one
            raise FeraError(f"updates are routed by AdamW's moments, which a {type(optimizer).__name__} does not have")
        if not layers:
            raise FeraError("there are no experts whose updates could be routed")
        experts = len(layers[0].ranks)
        if not 1 <= top_k <= experts:
            raise FeraError(f"top_k must lie between 1 and the number of experts, {experts}; got {top_k}")
        groups = {id(one): index for index, group in enumerate(optimizer.param_groups) for one in group["params"]}
        if not all(id(matrix) in groups for layer in layers for matrix in (layer.a, layer.b)):
            raise FeraError("the optimizer does not hold all experts: build it over what trains in the denoiser")
        self._groups = groups
        self._layers = list(layers)
        self._top_k = top_k
        self._before: list[tuple[Tensor, Tensor]] = []
        self.updates: Tensor | None = None
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._route)

    @torch.no_grad()
    def _keep(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Before a step: keep what the step may have to give back."""
        if self._top_k < len(self._layers[0].ranks):
            self._before = [(layer.a.detach().clone(), layer.b.detach().clone()) for layer in self._layers]

    @torch.no_grad()
    def _route(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After a step: give the weights of experts that were not chosen back."""
        scores = self._scores(optimizer)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self._top_k]
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        self.updates = chosen.float().mean(dim=0)
        if not self._before:
            return
        for layer, (a, b), row in zip(self._layers, self._before, chosen, strict=True):
            ranks = row[_expert_of_rank(layer.ranks, row.device)]
            torch.where(ranks.view(-1, *[1] * (a.ndim - 1)), layer.a, a, out=layer.a)
            torch.where(ranks.view(1, -1, *[1] * (b.ndim - 2)), layer.b, b, out=layer.b)
        self._before = []

    def _scores(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Each expert's score in each layer, shape (L, E); 0 in layers that have had no gradient yet."""
        matrices = [matrix for layer in self._layers for matrix in (layer.a, layer.b)]
        gains = self._gains(optimizer, matrices)
        scores = []
        for layer, of_a, of_b in zip(self._layers, gains[::2], gains[1::2], strict=True):
            of_rank = of_a.flatten(1).sum(dim=1) + of_b.flatten(1).sum(dim=0)  # B's kernels are of one pixel
            sums = of_rank.new_zeros(len(layer.ranks))
            sums.index_add_(0, _expert_of_rank(layer.ranks, sums.device), of_rank)
            weights = layer.weights_of_a_rank * torch.tensor(layer.ranks, device=sums.device)
            scores.append(sums / weights)
        return torch.stack(scores)

    def _gains(self, optimizer: torch.optim.Optimizer, matrices: Sequence[nn.Parameter]) -> list[Tensor]:
        """The expected decrease by each weight of each matrix, of their shapes; in few calls for all of them."""
        seen = [matrix for matrix in matrices if "exp_avg" in optimizer.state.get(matrix, {})]
        groups = [optimizer.param_groups[self._groups[id(matrix)]] for matrix in seen]
        found: dict[int, Tensor] = {}
        if seen:
            moments = [optimizer.state[matrix]["exp_avg"] for matrix in seen]
            gains = torch._foreach_mul(moments, moments)
            roots = torch._foreach_sqrt([optimizer.state[matrix]["exp_avg_sq"] for matrix in seen])
            torch._foreach_add_(roots, [float(group["eps"]) for group in groups])
            torch._foreach_div_(gains, roots)
            torch._foreach_mul_(gains, [float(group["lr"]) for group in groups])
            found = {id(matrix): gain for matrix, gain in zip(seen, gains, strict=True)}
        return [found.get(id(matrix), torch.zeros_like(matrix)) for matrix in matrices]


@cache
def _expert_of_rank(ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """Which expert each of the stacked ranks belongs to, shape (R,)."""
    return torch.arange(len(ranks), device=device).repeat_interleave(torch.tensor(ranks, device=device))
