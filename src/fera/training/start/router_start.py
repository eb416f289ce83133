"""router_init = "partition": the router starts from a run's own latents and noise levels."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fera.config import TrainConfig
from fera.data.cache.encoded import EncodedSet
from fera.models.noise import NoiseProcess
from fera.support.progress import Listener
from fera.training.step.draws import draw_noise, draw_timesteps
from fera.training.step.randomness import mixed_seed, rows_at
from fera.tuner.start import describe_start, start_router

_SAMPLES = 1024
# Of latents in memory at a time: those of clips are large.
_BYTES = 128 * 2**20


def start_from_latents(
    denoiser: nn.Module, training: EncodedSet, process: NoiseProcess, config: TrainConfig, listener: Listener
) -> None:
    """Start the router as a partition of noisy training latents, drawn as training draws them.

    Args:
        denoiser: it holds the fresh adapter.
        training: encoded training examples.
        process: how they are noised.
        config: the configuration of the run.
        listener: hears what came of it.
    """
    generator = torch.Generator().manual_seed(mixed_seed(config.seed, 3))
    rows = rows_at(0, _SAMPLES, len(training), config.seed)
    # Latents of one size can be read together; of several, those of the most common size stand for all.
    size = max(set(training.sizes), key=training.sizes.count)
    rows = [row for row in rows if training.sizes[row] == size]
    timesteps = draw_timesteps(process, config.train, len(rows), generator)
    count = max(1, _BYTES // training.latent(rows[0]).nbytes)

    def noisy() -> Iterator[Tensor]:
        for start in range(0, len(rows), count):
            latents = torch.stack([training.latent(row) for row in rows[start : start + count]])
            noise = draw_noise(latents, config.train.noise_offset, generator)
            yield process.add_noise(latents, noise, timesteps[start : start + count])

    gates = start_router(
        denoiser,
        noisy(),
        process.noise_levels(timesteps),
        entropy=config.adapter.router_entropy,
    )
    listener.say(f"the router starts as a partition of noisy training latents: {describe_start(gates)}")
