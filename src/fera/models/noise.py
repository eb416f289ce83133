r"""The noise process of a base: noise levels, noisy latents, what the denoiser predicts.

Two processes cover the prediction types:

.. math:: z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
          \text{target } \epsilon \text{ or } v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,z_0

.. math:: z_\sigma = (1 - \sigma)\, z_0 + \sigma\, \epsilon, \qquad \text{target } \epsilon - z_0, \qquad
          t = \sigma\, T

Schedulers of EDM whose denoisers predict velocities, as of Stable Video Diffusion, are the first process at noise
levels without steps: with sigma the noise over the signal, alpha_bar is 1 / (1 + sigma^2), and t is log(sigma) / 4.

Stable Audio has the first with the noise level as an angle: :math:`\sqrt{\bar\alpha_t} = \cos(\pi t / 2)`, t in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fera.errors import FeraError

# Timesteps where a scheduler counts none.
_THOUSAND = 1000
# How noise levels of EDM are spread.
_RHO = 7.0


@dataclass(frozen=True)
class NoiseProcess:
    """How latents are noised and what the denoiser predicts.

    Args:
        prediction_type: "epsilon", "v_prediction" or "flow_prediction".
        num_train_timesteps: T.
        alphas_cumprod: shape (T,), float32; None for flow matching and angles.
        shift: the shift of flow matching's noise levels; above 1 favours more noise.
        levels: the noise levels that are trained, from 0 (clean) to 1 (pure noise).
        sigmas: the least and the largest noise over the signal of EDM; None for the others.
        is_angle: whether timesteps are angles, from 0 to T for a right one.
    """

    prediction_type: str
    num_train_timesteps: int
    alphas_cumprod: Tensor | None = None
    shift: float = 1.0
    levels: tuple[float, float] = (0.0, 1.0)
    sigmas: tuple[float, float] | None = None
    is_angle: bool = False

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
            position: shape (B,), 0 (the noisiest of `levels`) to 1 (the cleanest).

        Returns:
            Shape (B,) in [0, T]: as the denoiser takes them, int64 for DDPM and float32 for flow matching and angles.
            For EDM float32, log(sigma) / 4 of noise levels that lie as its pipelines' do (Karras et al., arXiv
            2206.00364).
        """
        if self.sigmas is not None:
            least, largest = (sigma ** (1 / _RHO) for sigma in self.sigmas)
            return (largest + position.float() * (least - largest)).log() * (_RHO / 4)
        count = self.num_train_timesteps
        if self.levels != (0.0, 1.0):
            cleanest, noisiest = map(self._position, self.levels)
            position = noisiest + position * (cleanest - noisiest)
        if self.is_angle:
            return (1 - position).float() * count
        if not self.is_flow:
            return ((1 - position) * count).long().clamp(0, count - 1)
        sigma = (1 - position).clamp(1 / count, 1).float()
        return self.shift * sigma / (1 + (self.shift - 1) * sigma) * count

    def _position(self, level: float) -> float:
        """Where along the whole process, 0 (pure noise) to 1 (clean), a noise level lies."""
        return 1 - level / (self.shift - (self.shift - 1) * level)

    def angles(self, timesteps: Tensor) -> Tensor:
        """Timesteps that are angles, in radians: 0 for a clean latent, half of pi for pure noise; shape (B,)."""
        return timesteps.float() / self.num_train_timesteps * (math.pi / 2)

    def noise_levels(self, timesteps: Tensor) -> Tensor:
        """Timesteps as fractions of the process, shape (B,), float32: 0 for a clean latent, 1 for pure noise."""
        if self.sigmas is not None:
            clean, noise = (math.log(sigma) / 4 for sigma in self.sigmas)
            return (timesteps.float() - clean) / (noise - clean)
        return timesteps.float() / self.num_train_timesteps

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents, shape and dtype of `latents`, (B, C, H, W) or (B, C, L)."""
        signal, amount = self._scales(timesteps, latents)
        return signal * latents + amount * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict, shape and dtype of `latents`, (B, C, H, W) or (B, C, L)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.is_flow:
            return noise - latents
        signal, amount = self._scales(timesteps, latents)
        return signal * noise - amount * latents

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the latents and of the noise, shape (B, 1, 1, 1) or (B, 1, 1)."""
        shape = (-1, *[1] * (like.ndim - 1))
        if self.is_angle:
            angle = self.angles(timesteps).view(shape)
            return angle.cos().to(like.dtype), angle.sin().to(like.dtype)
        if self.sigmas is not None:
            sigma = torch.exp(4 * timesteps.float()).to(like.dtype).view(shape)
            signal = (1 + sigma**2).rsqrt()
            return signal, sigma * signal
        if self.alphas_cumprod is None:
            sigma = (timesteps / self.num_train_timesteps).to(like.dtype).view(shape)
            return 1 - sigma, sigma
        alpha = self.alphas_cumprod.to(like.device, like.dtype)[timesteps].view(shape)
        return alpha.sqrt(), (1 - alpha).sqrt()


def noise_process(scheduler: Any, prediction_type: str = "auto") -> NoiseProcess:
    """Read the noise process that a base was trained with from its scheduler.

    Args:
        scheduler: a diffusers scheduler.
        prediction_type: "auto" takes the scheduler's word, else what the base predicts.

    Raises:
        FeraError: the prediction type is unknown, or does not fit the scheduler; or the scheduler is one of EDM.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    is_flow_scheduler = name.startswith("FlowMatch") or config.get("use_flow_sigmas", False)
    if _is_velocity_of_edm(config) and prediction_type in ("auto", "v_prediction"):
        least, largest = (float(config[name] or 0) for name in ("sigma_min", "sigma_max"))
        alpha = scheduler.alphas_cumprod.float()
        ratio = ((1 - alpha) / alpha).sqrt()
        sigmas = (least or float(ratio[0]), largest or float(ratio[-1]))
        return NoiseProcess("v_prediction", int(config.num_train_timesteps), sigmas=sigmas)
    if counts_angles(scheduler) and prediction_type in ("auto", "v_prediction"):
        return NoiseProcess("v_prediction", 1, is_angle=True)
    if _is_continuous(scheduler, is_flow=is_flow_scheduler or prediction_type == "flow_prediction"):
        raise FeraError(
            f"the base's scheduler ({name}) is none of DDPM or of flow matching: its noise levels are continuous, as "
            "in EDM, and fera cannot train such a base yet. Take another base, such as SDXL"
        )
    if prediction_type == "auto":
        prediction_type = "flow_prediction" if is_flow_scheduler else config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction", "flow_prediction"):
        raise FeraError(
            f"the base's scheduler ({name}) says it predicts {prediction_type!r}; fera trains epsilon, "
            "v_prediction and flow_prediction. Set train.prediction_type if the scheduler is wrong"
        )
    count = int(config.num_train_timesteps)
    count = _THOUSAND if count == 1 else count  # of noise levels as they are: families tell their denoisers so
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


def spread_timesteps(process: NoiseProcess, count: int) -> Tensor:
    """Fixed timesteps that cover the process evenly, noise to clean, shape (count,)."""
    return process.timesteps((torch.arange(count) + 0.5) / count)


def fixed_noise(latents: Tensor, samples: Sequence[int], seed: int) -> Tensor:
    """Noise that depends on the seed and on each sample's number alone, not on the batch."""
    noise = []
    for sample, latent in zip(samples, latents, strict=True):
        generator = torch.Generator().manual_seed(seed + sample)
        noise.append(torch.randn(latent.shape, generator=generator))
    return torch.stack(noise)


def _is_velocity_of_edm(config: Any) -> bool:
    """Whether a scheduler's noise levels are those of EDM, and its denoiser predicts velocities."""
    kind = (config.get("timestep_type"), config.get("prediction_type"))
    return kind == ("continuous", "v_prediction") and "sigma_data" not in config


def counts_angles(scheduler: Any) -> bool:
    """Whether it is Stable Audio's, whose timestep is atan(sigma) over a right angle, for data of variance 1.

    Scaled by 1 / sqrt(1 + sigma^2), as the denoiser gets it, the sample is cos(a) z + sin(a) noise with tan(a) = sigma.
    """
    if type(scheduler).__name__ != "CosineDPMSolverMultistepScheduler":
        return False
    return bool(scheduler.config.sigma_data == 1 and scheduler.config.prediction_type == "v_prediction")


def _is_continuous(scheduler: Any, *, is_flow: bool) -> bool:
    """Whether a scheduler's noise levels are no steps of DDPM: its denoiser is told their logarithm, or the like."""
    config = scheduler.config
    is_edm = "sigma_data" in config or config.get("timestep_type") == "continuous"
    return is_edm or (not is_flow and not hasattr(scheduler, "alphas_cumprod"))
