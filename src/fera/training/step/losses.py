r"""What the denoiser learns: noise levels, targets, losses.

Two noise processes cover the prediction types:

.. math:: z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
          \text{target } \epsilon \text{ or } v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,z_0

.. math:: z_\sigma = (1 - \sigma)\, z_0 + \sigma\, \epsilon, \qquad \text{target } \epsilon - z_0, \qquad
          t = \sigma\, T
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers.training_utils import (
    compute_loss_weighting_for_sd3,
    compute_snr,
)
from torch import Tensor

from fera.config import OptimizationConfig
from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.method.consistency import frequency_energy_consistency
from fera.models.noise import NoiseProcess
from fera.training.step.draws import draw_timesteps

# Next to no noise has an SNR without bounds, and samples of it would then count for nothing.
_HIGHEST_DEBIASED_SNR = 1000.0


def loss_weights(process: NoiseProcess, settings: OptimizationConfig, timesteps: Tensor) -> Tensor:
    r"""Weight of each sample's loss, shape (B,), float32.

    DDPM with `snr_gamma`: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Min-SNR).
    DDPM with `debiased_estimation_loss`: 1 / sqrt(SNR) for epsilon, 1 / (SNR + 1) for v, with SNR up to 1000, as in
    kohya's trainer; the paper is about epsilon.
    Flow matching: 1, or by sigma for the schemes "sigma_sqrt" and "cosmap".

    Raises:
        FeraError: a weight by SNR is asked for, but the base is one of flow matching.

    Source:
        Hang et al., arXiv 2303.09556 (Min-SNR); Yu et al., arXiv 2310.08442 (debiased estimation).
    """
    if process.is_flow:
        for name in ("snr_gamma", "debiased_estimation_loss"):
            if getattr(settings, name):
                raise FeraError(f"train.{name} does not apply to a base trained by flow matching; leave it unset")
        sigma = timesteps.float() / process.num_train_timesteps
        return compute_loss_weighting_for_sd3(settings.weighting_scheme, sigma)
    if settings.snr_gamma is None and not settings.debiased_estimation_loss:
        return torch.ones_like(timesteps, dtype=torch.float32)
    if process.sigmas is not None:
        snr = torch.exp(-8 * timesteps.float())  # sigma is exp(4 t)
    elif process.is_angle:
        snr = process.angles(timesteps).tan().square().reciprocal()
    else:
        snr = compute_snr(SimpleNamespace(alphas_cumprod=process.alphas_cumprod), timesteps)
    is_velocity = process.prediction_type == "v_prediction"
    if settings.snr_gamma is not None:
        if is_velocity:
            return snr.clamp(max=settings.snr_gamma) / (snr + 1)
        return (settings.snr_gamma / snr).clamp(max=1)  # so divided, it is 1 without signal too, as its limit is
    snr = snr.clamp(max=_HIGHEST_DEBIASED_SNR)
    return 1 / (snr + 1) if is_velocity else snr.rsqrt()


def check_loss_weights(process: NoiseProcess, settings: OptimizationConfig) -> None:
    """Hold the weighting of the loss against the noise process, before the first step.

    Raises:
        FeraError: it does not apply to the process, or a weight would be infinite.
    """
    generator = torch.Generator().manual_seed(0)
    loss_weights(process, settings, draw_timesteps(process, settings, 1, generator))
    if settings.debiased_estimation_loss and process.prediction_type == "epsilon" and process.has_zero_terminal_snr:
        raise FeraError(
            "train.debiased_estimation_loss weights by 1 / sqrt(SNR), which is infinite for this base: it has no "
            "signal at its last timestep (zero terminal SNR). Use train.snr_gamma, or leave it out"
        )


@dataclass(frozen=True)
class Losses:
    """Losses of one forward.

    Args:
        denoising: mean squared error of each sample, unweighted, shape (B,), float32.
        consistency: frequency-energy consistency, scalar; None where it is off.
    """

    denoising: Tensor
    consistency: Tensor | None


def denoising_losses(
    process: NoiseProcess,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    adapted: Callable[[Tensor, Tensor], Tensor],
    base: Callable[[Tensor, Tensor], Tensor] | None = None,
    bands: FrequencyBands | None = None,
    mask: Tensor | None = None,
) -> Losses:
    """Losses of one batch.

    Args:
        process: the noise process.
        latents: clean, shape (B, C, H, W), or (B, C, L) of sounds.
        noise: same shape.
        timesteps: shape (B,).
        adapted: (noisy latents, timesteps) to the prediction with the adapter.
        base: the same without adapter and without gradient; None switches the consistency loss off.
        bands: for the consistency loss.
        mask: where in the latents losses count, shape (B, 1, H, W), in [0, 1]; everywhere when left out. A sample's
            loss is the mean weighted by it, so that a sample counts the same whatever the area of its mask.
    """
    noisy = process.add_noise(latents, noise, timesteps)
    target = process.target(latents, noise, timesteps).float()
    # The base goes first: what a forward leaves behind for the backward pass is then the adapted one's.
    reference = base(noisy, timesteps).float() if base is not None else None
    prediction = adapted(noisy, timesteps).float()
    if mask is None:
        denoising = (prediction - target).square().mean(dim=tuple(range(1, target.ndim)))
    else:
        area = (mask.sum(dim=(1, 2, 3)) * latents.shape[1]).clamp(min=torch.finfo(torch.float32).tiny)
        denoising = ((prediction - target).square() * mask).sum(dim=(1, 2, 3)) / area
        prediction, target = prediction * mask, target * mask
        reference = reference * mask if reference is not None else None
    if reference is None or bands is None:
        return Losses(denoising, None)
    return Losses(denoising, frequency_energy_consistency(reference, prediction, target, bands))
