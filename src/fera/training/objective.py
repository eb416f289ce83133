r"""What the denoiser learns: noise levels, targets, losses.

Two noise processes cover the prediction types:

.. math:: z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
          \text{target } \epsilon \text{ or } v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,z_0

.. math:: z_\sigma = (1 - \sigma)\, z_0 + \sigma\, \epsilon, \qquad \text{target } \epsilon - z_0, \qquad
          t = \sigma\, T
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    compute_snr,
)
from torch import Tensor

from fera.bands import FrequencyBands
from fera.consistency import frequency_energy_consistency
from fera.errors import FeraError
from fera.training.config import OptimizationConfig

# Next to no noise has an SNR without bounds, and samples of it would then count for nothing.
_HIGHEST_DEBIASED_SNR = 1000.0


@dataclass(frozen=True)
class NoiseProcess:
    """How latents are noised and what the denoiser predicts.

    Args:
        prediction_type: "epsilon", "v_prediction" or "flow_prediction".
        num_train_timesteps: T.
        alphas_cumprod: shape (T,), float32; None for flow matching.
        shift: of flow matching's noise levels; above 1 favours more noise.
    """

    prediction_type: str
    num_train_timesteps: int
    alphas_cumprod: Tensor | None = None
    shift: float = 1.0

    def to(self, device: torch.device) -> "NoiseProcess":
        """The same with its tensors on a device, where no step has to move them."""
        if self.alphas_cumprod is None:
            return self
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    @property
    def is_flow(self) -> bool:
        """Whether this is flow matching."""
        return self.prediction_type == "flow_prediction"

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last timestep of DDPM is noise alone, as in bases with rescaled betas."""
        return self.alphas_cumprod is not None and bool(self.alphas_cumprod[-1] == 0)

    def timesteps(self, position: Tensor) -> Tensor:
        """Timesteps at positions along the process.

        Args:
            position: shape (B,), 0 (pure noise) to 1 (clean).

        Returns:
            Shape (B,) in [0, T]: as the denoiser takes them, int64 for DDPM and float32 for flow matching.
        """
        count = self.num_train_timesteps
        if not self.is_flow:
            return ((1 - position) * count).long().clamp(0, count - 1)
        sigma = (1 - position).clamp(1 / count, 1).float()
        return self.shift * sigma / (1 + (self.shift - 1) * sigma) * count

    def noise_levels(self, timesteps: Tensor) -> Tensor:
        """Timesteps as fractions of the process, shape (B,), float32: 0 for a clean latent, 1 for pure noise."""
        return timesteps.float() / self.num_train_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents, shape and dtype of `latents` (B, C, H, W)."""
        signal, amount = self._scales(timesteps, latents)
        return signal * latents + amount * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict, shape and dtype of `latents` (B, C, H, W)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.is_flow:
            return noise - latents
        signal, amount = self._scales(timesteps, latents)
        return signal * noise - amount * latents

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the latents and of the noise, shape (B, 1, 1, 1)."""
        if self.alphas_cumprod is None:
            sigma = (timesteps / self.num_train_timesteps).to(like.dtype).view(-1, 1, 1, 1)
            return 1 - sigma, sigma
        alpha = self.alphas_cumprod.to(like.device, like.dtype)[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def noise_process(scheduler: Any, prediction_type: str = "auto") -> NoiseProcess:
    """Read the noise process that a base was trained with from its scheduler.

    Args:
        scheduler: a diffusers scheduler.
        prediction_type: "auto" takes the scheduler's word, else what the base predicts.

    Raises:
        FeraError: the prediction type is unknown, or does not fit the scheduler.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    is_flow_scheduler = name.startswith("FlowMatch") or config.get("use_flow_sigmas", False)
    if prediction_type == "auto":
        prediction_type = "flow_prediction" if is_flow_scheduler else config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction", "flow_prediction"):
        raise FeraError(
            f"the base's scheduler ({name}) says it predicts {prediction_type!r}; fera trains epsilon, "
            "v_prediction and flow_prediction. Set train.prediction_type if the scheduler is wrong"
        )
    count = int(config.num_train_timesteps)
    if prediction_type == "flow_prediction":
        # A shift that depends on the picture's size belongs to sampling.
        dynamic = config.get("use_dynamic_shifting", False)
        shift = 1.0 if dynamic else float(config.get("shift", config.get("flow_shift", 1.0)))
        return NoiseProcess(prediction_type, count, shift=shift)
    if is_flow_scheduler:
        raise FeraError(
            f"train.prediction_type is {prediction_type}, but the base's scheduler ({name}) is one of flow "
            'matching; use "flow_prediction" or "auto"'
        )
    return NoiseProcess(prediction_type, count, alphas_cumprod=scheduler.alphas_cumprod.float())


def draw_timesteps(
    process: NoiseProcess, settings: OptimizationConfig, count: int, generator: torch.Generator
) -> Tensor:
    """Draw timesteps to train at: uniform for DDPM, by the weighting scheme for flow matching.

    Returns:
        Shape (count,), on the generator's device, as `NoiseProcess.timesteps`.
    """
    if not process.is_flow:
        return process.timesteps(torch.rand(count, generator=generator, device=generator.device))
    position = compute_density_for_timestep_sampling(
        settings.weighting_scheme,
        count,
        settings.logit_mean,
        settings.logit_std,
        settings.mode_scale,
        device=generator.device,
        generator=generator,
    )
    return process.timesteps(position)


def spread_timesteps(process: NoiseProcess, count: int) -> Tensor:
    """Fixed timesteps that cover the process evenly, noise to clean, shape (count,)."""
    return process.timesteps((torch.arange(count) + 0.5) / count)


def draw_noise(latents: Tensor, noise_offset: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise like `latents`; `noise_offset` adds noise that all pixels of a channel share."""
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    if noise_offset > 0:
        shared = torch.randn((*latents.shape[:2], 1, 1), generator=generator, device=generator.device)
        noise = noise + noise_offset * shared
    return noise.to(latents)


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
        latents: clean, shape (B, C, H, W).
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
        denoising = (prediction - target).square().mean(dim=(1, 2, 3))
    else:
        area = (mask.sum(dim=(1, 2, 3)) * latents.shape[1]).clamp(min=torch.finfo(torch.float32).tiny)
        denoising = ((prediction - target).square() * mask).sum(dim=(1, 2, 3)) / area
        prediction, target = prediction * mask, target * mask
        reference = reference * mask if reference is not None else None
    if reference is None or bands is None:
        return Losses(denoising, None)
    return Losses(denoising, frequency_energy_consistency(reference, prediction, target, bands))
