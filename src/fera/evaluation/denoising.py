"""Held-out denoising: the same pictures at the same noise and timesteps for every adapter."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fera.data.buckets import Size
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.encoder import Encoder
from fera.data.checking import Example
from fera.evaluation.results import Sample
from fera.evaluation.settings import EvaluationSettings
from fera.method.bands import FrequencyBands
from fera.models.components import denoisers
from fera.models.families import family_of
from fera.models.noise import fixed_noise, noise_process

QUARTERS = 4  # ranges of the noise process
Progress = Callable[[str, int, int], None]


def encode_folder(
    pipe: Any, examples: Sequence[Example], size: Size, cache: Path, device: torch.device, progress: Progress
) -> EncodedSet:
    """Latents and embeddings of a folder, computed as training computes them, or found in the cache."""
    encoder = Encoder(
        pipe=pipe,
        family=family_of(pipe),
        folder=cache,
        device=device,
        buckets=[size],
        center_crop=True,
        random_flip=False,
        seed=0,
        progress=progress,
    )
    return encoder.encode(examples)


@torch.no_grad()
def denoising_samples(
    pipe: Any, data: EncodedSet, settings: EvaluationSettings, progress: Progress
) -> tuple[Sample, ...]:
    r"""Losses of the pipeline's denoiser, adapters as they are set.

    Sample i is picture i (modulo their number) at its own noise and timestep; the timesteps cover the noise levels
    evenly and are shuffled. For the same `loss_samples` and `seed` this is the held-out loss of `fera train`.

    The loss of band k is the inner product of the error with its band,

    .. math:: \frac{1}{CHW} \langle e, b_k \rangle = \frac{1}{CHW} \sum_\omega P(\omega)\, H_k(\omega), \qquad
              P = \sum_C |\mathrm{DCT}_2(e)|^2

    The transfer functions :math:`H_k` are not squared: they lie in [0, 1] and sum to 1 at every frequency, so the
    bands are non-negative and sum to the loss. (`FrequencyBands.energies` squares them; those do not add up, for
    neighbouring bands overlap.)

    Args:
        pipe: with its denoiser where it should compute.
        data: the folder, encoded.
        settings: number of samples, seed, bands.
        progress: told (what, done, of how many).
    """
    denoiser = next(iter(denoisers(pipe).values()))
    weights = next(denoiser.parameters())
    family, process = family_of(pipe), noise_process(pipe.scheduler)
    bands = FrequencyBands(settings.num_bands, settings.kappa)
    count = settings.loss_samples
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    positions = ((torch.arange(count) + 0.5) / count)[order]
    timesteps = process.timesteps(positions)
    samples: list[Sample] = []
    was_training = denoiser.training
    denoiser.eval()
    try:
        for rows in _batches(count, settings.batch_size):
            batch = data.batch([row % len(data) for row in rows])
            latents, noise = batch.latents, fixed_noise(batch.latents, rows, settings.seed)
            at = timesteps[rows]
            noisy, target = process.add_noise(latents, noise, at), process.target(latents, noise, at)
            conditions = {name: value.to(weights.device, weights.dtype) for name, value in batch.conditions.items()}
            prediction = family.predict(
                denoiser, noisy.to(weights.device, weights.dtype), at.to(weights.device), conditions
            )
            error = prediction.float().cpu() - target
            losses = error.square().mean(dim=(1, 2, 3))
            by_band = (bands.split(error) * error[:, None]).mean(dim=(2, 3, 4))
            for place, row in enumerate(rows):
                samples.append(
                    Sample(
                        image=batch.names[place],
                        timestep=float(at[place]),
                        position=float(positions[row]),
                        loss=float(losses[place]),
                        bands=tuple(by_band[place].tolist()),
                    )
                )
            progress("held-out samples", len(samples), count)
    finally:
        denoiser.train(was_training)
    return tuple(samples)


def mean_losses(samples: Sequence[Sample]) -> tuple[float, tuple[float | None, ...], tuple[float, ...]]:
    """Mean loss, by quarter of the noise process (noise to clean), and by band (low to high)."""
    quarters: list[list[float]] = [[] for _ in range(QUARTERS)]
    for sample in samples:
        quarters[min(int(sample.position * QUARTERS), QUARTERS - 1)].append(sample.loss)
    by_band = [sum(losses) / len(samples) for losses in zip(*(sample.bands for sample in samples), strict=True)]
    return (
        sum(sample.loss for sample in samples) / len(samples),
        tuple(sum(losses) / len(losses) if losses else None for losses in quarters),
        tuple(by_band),
    )


def _batches(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))
