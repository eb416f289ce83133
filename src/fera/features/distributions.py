"""Distances between the features of generated and of real pictures."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

_SUBSETS = 50  # of the larger set, for the kernel distance


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of two sets of features, as FID computes it, at least 0.

    It is biased upwards for few pictures: compare only between sets of the same sizes.

    Args:
        real: shape (N, D), at least two rows.
        generated: shape (M, D), likewise.

    Source:
        Heusel et al., arXiv 1706.08500; computed by torchmetrics.
    """
    metric = FrechetInceptionDistance(feature=_AsIs(real.shape[1]))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(0.0, float(metric.compute()))  # rounding can leave -1e-9 for a set and itself


def kernel_distance(real: Tensor, generated: Tensor, *, seed: int = 0) -> float:
    """Kernel distance of two sets of features, as KID computes it: cubic polynomial kernel, unbiased.

    Args:
        real: shape (N, D), at least two rows.
        generated: shape (M, D), likewise.
        seed: the seed of the draws from the larger set; all pictures are taken where both have the same size.

    Source:
        Binkowski et al., arXiv 1801.01401; computed by torchmetrics.
    """
    size = min(len(real), len(generated))
    subsets = 1 if len(real) == len(generated) else _SUBSETS
    with warnings.catch_warnings():
        # It keeps all features, which is what we give it.
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer")
        metric = KernelInceptionDistance(feature=_AsIs(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws from the global generator
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def diversity(features: Tensor, prompts: list[str]) -> tuple[float | None, float | None]:
    """Mean cosine distance between pictures of one prompt, and of different prompts.

    Args:
        features: the features of the pictures, shape (M, D).
        prompts: the prompts of the pictures.

    Returns:
        Both in [0, 2]; None where there is no such pair.
    """
    directions = functional.normalize(features, dim=1)
    distances = 1 - directions @ directions.T
    numbers = torch.tensor([prompts.index(prompt) for prompt in prompts])
    is_same = numbers[:, None] == numbers
    is_pair = torch.ones_like(is_same).triu(diagonal=1)
    same, other = distances[is_same & is_pair], distances[~is_same & is_pair]
    return float(same.mean()) if len(same) else None, float(other.mean()) if len(other) else None


class _AsIs(nn.Module):
    """Takes features for features: they are computed once for all metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
