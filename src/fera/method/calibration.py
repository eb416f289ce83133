r"""Choosing kappa from data: at which scale the bands tell noise levels and samples apart.

The right scale depends on the latent space. Bands that are too fine leave all energy in the low one, bands that are
too coarse leave it all in the high one; either way the indicator hardly moves while a model denoises.

Latents are noised at several levels, a few times each, and every candidate is scored by the information that its
indicator carries about where a noisy latent comes from, in bits:

.. math:: I(\text{level}, \text{sample}; e) = \underbrace{h(e) - h(e \mid \text{level})}_{\text{level bits}}
          + \underbrace{h(e \mid \text{level}) - h(e \mid \text{level}, \text{sample})}_{\text{sample bits}}

What is left in the last term is the luck of the noise. The entropies are those of Gaussians of the same covariance,

.. math:: h(e) = \tfrac12 \log_2 \det(\operatorname{Cov} e + \delta^2 \mathbf 1),

so the first term is the log of a ratio of variances, between and within levels, as in an analysis of variance (Wilks'
lambda). :math:`\delta` is the difference in a share that is worth telling: the router reads shares, and differences
far below it would be lost on it, however reproducible they are. It is what makes an all but empty band worthless.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.method.bands import FrequencyBands

AddNoise = Callable[[Tensor, Tensor, Tensor], Tensor]

# Delta. Not critical: on the emoji base the best scale stays between half a pixel and one from 0.01 to 0.05.
RESOLUTION = 0.02
_LEVELS = 8
_DRAWS = 2


@dataclass(frozen=True)
class KappaScore:
    """What the indicator tells at one kappa.

    Args:
        kappa: finest Gaussian's deviation as a fraction of the latent's shorter side.
        level_bits: information about the noise level, at least 0.
        sample_bits: information about the sample, given the level, at least 0.
        entropy: the entropy of the mean indicator over all levels, 1 for equal bands, 0 for a single one.
        shares: mean share of each band, L lists of K, levels as they were given, low to high frequency.
        shares_std: its deviation between samples and draws, likewise.
    """

    kappa: float
    level_bits: float
    sample_bits: float
    entropy: float
    shares: list[list[float]]
    shares_std: list[list[float]]

    @property
    def bits(self) -> float:
        """The score: information about level and sample together."""
        return self.level_bits + self.sample_bits


@dataclass(frozen=True)
class Calibration:
    """The outcome of `calibrate_kappa`.

    Args:
        kappa: the candidate of the highest score; the finest of those where several share it.
        num_bands: K it holds for.
        shortest_side: the shortest side of the latents, in latent pixels.
        samples: latents that were looked at.
        timesteps: the timesteps of the noise levels.
        scores: one a candidate, finest first.
    """

    kappa: float
    num_bands: int
    shortest_side: int
    samples: int
    timesteps: list[float]
    scores: list[KappaScore]

    @property
    def chosen(self) -> KappaScore:
        """The score of the choice."""
        return next(score for score in self.scores if score.kappa == self.kappa)


def calibrate_kappa(
    latents: Tensor | Sequence[Tensor],
    *,
    num_bands: int = 3,
    add_noise: AddNoise | None = None,
    timesteps: Tensor | None = None,
    kappas: Sequence[float] | None = None,
    max_samples: int = 64,
    seed: int = 0,
) -> Calibration:
    """Choose kappa by what the indicator tells about noise levels and samples.

    The same latents, settings and seed give the same choice.

    Args:
        latents: clean latents in the denoiser's units: (C, H, W) or (B, C, H, W) each, or (C, L) of sounds;
            sizes may differ.
        num_bands: K.
        add_noise: (latents (B, C, H, W), noise, timesteps (B,)) to noisy latents, such as the `add_noise` of a
            diffusers scheduler; flow matching, (1 - t) z + t noise with t in (0, 1), when left out.
        timesteps: shape (L,), the noise levels to tell apart, as `add_noise` takes them; eight that cover (0, 1)
            evenly when both are left out.
        kappas: candidates; in steps of half an octave from half a pixel to a quarter of the shortest side of all
            latents when left out. The floor of half a pixel then acts on none of them.
        max_samples: latents to look at, drawn from the seed where there are more.
        seed: the seed of that draw and of the noise.

    Returns:
        The choice and the score of each candidate.

    Raises:
        FeraError: there is no latent or a bad one, no candidate or level, or only one of `add_noise` and
            `timesteps` is given.
    """
    if (add_noise is None) != (timesteps is None):
        raise FeraError("add_noise and timesteps belong together: give both, or neither for flow matching")
    if add_noise is None or timesteps is None:
        add_noise, timesteps = _flow_matching, (torch.arange(_LEVELS) + 0.5) / _LEVELS
    samples = _some(_one_by_one(latents), max_samples, seed)
    side = min(min(sample.shape[1:]) for sample in samples)
    candidates = sorted(_grid(side) if kappas is None else kappas)
    if not candidates or timesteps.ndim != 1 or len(timesteps) == 0:
        raise FeraError("calibration needs at least one kappa and timesteps of shape (L,), L at least 1")
    bands = [FrequencyBands(num_bands, kappa) for kappa in candidates]
    shares = torch.stack(
        [indicators(sample, bands, add_noise, timesteps, seed + i) for i, sample in enumerate(samples)], dim=2
    )
    scores = [_score(kappa, seen) for kappa, seen in zip(candidates, shares, strict=True)]
    best = max(scores, key=lambda score: score.bits)
    return Calibration(best.kappa, num_bands, side, len(samples), timesteps.tolist(), scores)


def indicators(
    latent: Tensor, bands: Sequence[FrequencyBands], add_noise: AddNoise, timesteps: Tensor, seed: int
) -> Tensor:
    """What each candidate sees of one latent, noised a few times (D) at each level; all see the same noise.

    Args:
        latent: shape (C, H, W) or (C, L).
        bands: M candidates of K bands.
        add_noise: as in `calibrate_kappa`.
        timesteps: shape (L,).
        seed: the seed of the noise.

    Returns:
        Shape (M, L, D, K), float64, on the CPU.
    """
    levels = timesteps.to(latent.device).repeat_interleave(_DRAWS)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(levels), *latent.shape), generator=generator).to(latent)
    noisy = add_noise(latent.expand_as(noise), noise, levels)
    seen = torch.stack([candidate.indicator(noisy) for candidate in bands])
    return seen.double().cpu().unflatten(1, (len(timesteps), _DRAWS))


def information(shares: Tensor, resolution: float = RESOLUTION) -> tuple[float, float]:
    """Bits about the noise level, and about the sample given the level.

    Args:
        shares: shape (L, N, D, K), indicators of N samples at L levels, drawn D times, D at least 2.
        resolution: delta.

    Returns:
        Level bits and sample bits, each at least 0.
    """
    samples, draws = shares.shape[1:3]
    within_levels = shares - shares.mean(dim=(1, 2), keepdim=True)
    within_samples = shares - shares.mean(dim=2, keepdim=True)
    anywhere = (shares - shares.mean(dim=(0, 1, 2))).flatten(0, 2)
    entropy = _entropy(anywhere.T @ anywhere / len(anywhere), resolution)
    given_level = _entropy(_covariances(within_levels, samples * draws), resolution).mean()
    given_sample = _entropy(_covariances(within_samples, samples * (draws - 1)), resolution).mean()
    return max(0.0, float(entropy - given_level)), max(0.0, float(given_level - given_sample))


def _entropy(covariance: Tensor, resolution: float) -> Tensor:
    """Gaussian entropy in bits, up to a constant, of covariances (..., K, K); shape (...)."""
    blurred = covariance + resolution**2 * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return torch.logdet(blurred) / (2 * math.log(2))


def _covariances(deviations: Tensor, degrees: int) -> Tensor:
    """Covariance at each level, shape (L, K, K), of deviations (L, N, D, K)."""
    flat = deviations.flatten(1, 2)
    return flat.transpose(1, 2) @ flat / degrees


def _score(kappa: float, shares: Tensor) -> KappaScore:
    level_bits, sample_bits = information(shares)
    mean = shares.mean(dim=(0, 1, 2))
    return KappaScore(
        kappa=kappa,
        level_bits=level_bits,
        sample_bits=sample_bits,
        entropy=float(torch.special.entr(mean).sum() / math.log(len(mean))),
        shares=shares.mean(dim=(1, 2)).tolist(),
        shares_std=shares.flatten(1, 2).std(dim=1, correction=0).tolist(),
    )


def _flow_matching(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    level = timesteps.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))
    return (1 - level) * latents + level * noise


def _grid(side: int) -> list[float]:
    """Half octaves from half a pixel to a quarter of the side."""
    finest = 0.5 / side
    steps = math.floor(2 * math.log2(max(0.25 / finest, 1)))
    return [finest * 2 ** (step / 2) for step in range(steps + 1)]


def _one_by_one(latents: Any) -> list[Tensor]:
    """All latents as (C, H, W) or (C, L)."""
    alone: list[Tensor] = []
    for latent in latents:
        if not isinstance(latent, Tensor) or latent.ndim not in (2, 3, 4):
            shape = tuple(latent.shape) if isinstance(latent, Tensor) else type(latent).__name__
            raise FeraError(f"latents to calibrate on must be of shape (C, H, W), (B, C, H, W) or (C, L), got {shape}")
        alone.extend(latent.unsqueeze(0) if latent.ndim < 4 else latent)
    if not alone:
        raise FeraError("there are no latents to calibrate kappa on")
    return alone


def _some(samples: list[Tensor], count: int, seed: int) -> list[Tensor]:
    if count < 1:
        raise FeraError(f"max_samples must be at least 1, got {count}")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[index] for index in sorted(order[:count].tolist())]
