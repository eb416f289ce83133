r"""A soft partition of what the router reads, to start it from.

A router that starts at random starts near the uniform gate, and soon answers with one expert alone. One that starts as
a partition has specialists from the first step: the inputs of noisy training latents are clustered (k-means), and the
gate is the posterior of equally wide, equally likely Gaussians around the centres,

.. math:: g_e \propto \exp\Bigl(-\frac{\lVert u - c_e \rVert^2}{2 w^2} + b_e\Bigr), \qquad
          u = \frac{x - \operatorname{mean}}{\operatorname{std}} .

The square of u is common to all experts and drops out of the softmax, so this is linear in x, and any router with a
linear path can hold it. The width w sets how soft the partition is: it is chosen so that the gate has a given mean
entropy, which means the same for every input and number of experts. :math:`b_e` gives all experts the same mean use.
"""

import math

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.method.router import gate_entropy

_ITERATIONS = 50


def partition(inputs: Tensor, num_experts: int, entropy: float) -> tuple[Tensor, Tensor]:
    """Logits of a soft partition of router inputs, as a linear function of them.

    Args:
        inputs: shape (N, F), floating point; what the router reads of N noisy training latents.
        num_experts: E, at most N.
        entropy: mean entropy that the gate shall have, as a fraction of the uniform gate's, in (0, 1).

    Returns:
        Weight, shape (E, F), and bias, shape (E,), float64: the gate is softmax(inputs @ weight.T + bias). Experts are
        in the order of the inputs' first principal component.

    Raises:
        FeraError: `entropy` is out of its range, there are fewer inputs than experts, or all are the same.
    """
    if not 0 < entropy < 1:
        raise FeraError(f"the entropy of a partition must lie between 0 and 1, got {entropy!r}")
    if inputs.shape[0] < num_experts:
        raise FeraError(f"a partition among {num_experts} experts needs as many inputs, got {inputs.shape[0]}")
    if num_experts == 1:
        return torch.zeros(1, inputs.shape[1], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    inputs = inputs.double()
    mean, deviation = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
    if not (deviation > 1e-9).any():
        raise FeraError("all inputs of the router are the same: there is nothing to partition")
    deviation = torch.where(deviation > 1e-9, deviation, torch.inf)  # an entry that never moves is not looked at
    standard = (inputs - mean) / deviation
    centres = _centres(standard, num_experts)
    weight, bias = _of_entropy(standard, centres, entropy)
    weight = weight / deviation
    return weight, bias - weight @ mean


def _centres(points: Tensor, count: int) -> Tensor:
    """Centres of k-means, shape (count, F), started from equal parts along the first principal component."""
    axis = torch.linalg.svd(points, full_matrices=False).Vh[0]
    axis = axis * torch.sign(axis[axis.abs().argmax()])  # its sign is arbitrary
    order = (points @ axis).argsort()
    centres = torch.stack([points[part].mean(dim=0) for part in order.tensor_split(count)])
    for _ in range(_ITERATIONS):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        members = [points[nearest == index] for index in range(count)]
        moved = torch.stack(
            [group.mean(dim=0) if len(group) else centre for group, centre in zip(members, centres, strict=True)]
        )
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres[(centres @ axis).argsort()]


def _of_entropy(points: Tensor, centres: Tensor, entropy: float) -> tuple[Tensor, Tensor]:
    """Logits of the width whose gate has that mean entropy: it grows with the width."""
    narrow, wide = 1e-2, 1e2
    for _ in range(40):
        width = math.sqrt(narrow * wide)
        weight, bias = _balanced(points, centres, width)
        if gate_entropy(torch.softmax(points @ weight.T + bias, dim=1)).mean() < entropy:
            narrow = width
        else:
            wide = width
    return weight, bias


def _balanced(points: Tensor, centres: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Logits of Gaussians of one width, whose mean gate over the points is uniform."""
    weight = centres / width**2
    bias = -centres.square().sum(dim=1) / (2 * width**2)
    for _ in range(100):
        use = torch.softmax(points @ weight.T + bias, dim=1).mean(dim=0)
        if (use * len(use) - 1).abs().max() < 1e-3:
            break
        bias = bias - use.clamp_min(1e-12).log() - math.log(len(use))
    return weight, bias
