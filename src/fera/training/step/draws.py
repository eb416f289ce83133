"""What one forward trains on. Everything random about it follows from the seed and its place in the run."""

from dataclasses import dataclass

import torch
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
)
from torch import Tensor

from fera.config import OptimizationConfig, TrainConfig
from fera.data.cache.encoded import EncodedSet
from fera.models.noise import NoiseProcess
from fera.training.step.order import Order
from fera.training.step.randomness import mixed_seed


@dataclass(frozen=True)
class Draw:
    """Examples with their noise.

    Args:
        latents: clean, shape (B, C, H, W).
        noise: same shape.
        timesteps: shape (B,).
        conditions: what the denoiser takes besides.
        names: the names of the pictures.
        captions: the captions of the examples, as they are trained on.
        mask: where the loss counts, shape (B, 1, H, W), in [0, 1]; None where it counts everywhere.
        weights: the weights of each sample's loss, shape (B,); None where all are 1.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditions: dict[str, Tensor]
    names: list[str]
    captions: list[str]
    mask: Tensor | None = None
    weights: Tensor | None = None


def draw(
    training: EncodedSet, order: Order, place: int, process: NoiseProcess, config: TrainConfig, device: torch.device
) -> Draw:
    """Draw a batch.

    Each sample has a generator of its own, numbered over the whole run: among pictures of one size, batch size,
    accumulation and number of processes do not change what the samples of a step are.

    Args:
        training: the examples.
        order: in which they come.
        place: the place of the batch in the run, over all processes.
        process: how latents are noised.
        config: the configuration of the run.
        device: where the tensors go.
    """
    settings = config.train
    rows, start = order.rows(place), place * settings.batch_size
    generators = [torch.Generator().manual_seed(mixed_seed(config.seed, 1, start + i)) for i in range(len(rows))]
    chances = [torch.rand(2, generator=generator).tolist() for generator in generators]
    batch = training.batch(
        rows,
        flipped=[flip < 0.5 and config.data.random_flip for flip, _ in chances],
        without_caption=[drop < settings.caption_dropout for _, drop in chances],
        # Beside the generators: what they draw does not depend on how captions are varied.
        variants=[mixed_seed(config.seed, 3, start + i) for i in range(len(rows))],
    )
    one = batch.latents[:1]
    noise = torch.cat([draw_noise(one, settings.noise_offset, generator) for generator in generators])
    timesteps = torch.cat([draw_timesteps(process, settings, 1, generator) for generator in generators])

    def moved(tensor: Tensor) -> Tensor:
        # CUDA takes what it needs of pageable memory before it returns, and need not be waited for.
        return tensor.to(device, non_blocking=device.type == "cuda")

    return Draw(
        latents=moved(batch.latents),
        noise=moved(noise),
        timesteps=moved(timesteps),
        conditions={name: moved(value) for name, value in batch.conditions.items()},
        names=batch.names,
        captions=batch.captions,
        mask=moved(batch.mask) if batch.mask is not None else None,
        weights=moved(batch.weights) if batch.weights is not None else None,
    )


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


def draw_noise(latents: Tensor, noise_offset: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise like `latents`; `noise_offset` adds noise that all pixels of a channel share."""
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    if noise_offset > 0:
        shared = torch.randn(
            (*latents.shape[:2], *[1] * (latents.ndim - 2)), generator=generator, device=generator.device
        )
        noise = noise + noise_offset * shared
    return noise.to(latents)
