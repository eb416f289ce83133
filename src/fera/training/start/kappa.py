"""kappa = "auto": chosen from a run's own latents and noise process."""

import torch

from fera.config import TrainConfig
from fera.data.cache.encoded import EncodedSet
from fera.method.calibration import Calibration, calibrate_kappa
from fera.models.noise import NoiseProcess, spread_timesteps
from fera.support.progress import Listener
from fera.training.step.randomness import rows_at

_SAMPLES = 64
_LEVELS = 8


def calibrate(
    training: EncodedSet, process: NoiseProcess, config: TrainConfig, device: torch.device, listener: Listener
) -> Calibration:
    """Choose kappa by what the indicator tells about the training latents.

    Args:
        training: encoded training examples; the choice rests on up to 64 of them, drawn from the run's seed.
        process: how they are noised.
        config: the configuration of the run.
        device: where to compute.
        listener: hears the choice.
    """
    rows = rows_at(0, min(_SAMPLES, len(training)), len(training), config.seed)
    calibration = calibrate_kappa(
        [training.latent(row).to(device) for row in rows],
        num_bands=config.adapter.num_bands,
        add_noise=process.add_noise,
        timesteps=spread_timesteps(process, _LEVELS),
        max_samples=_SAMPLES,
        seed=config.seed,
    )
    chosen, side = calibration.chosen, calibration.shortest_side
    listener.say(
        f"kappa = {chosen.kappa:.4g}, or {chosen.kappa * side:.2f} of {side} latent pixels: the indicator tells "
        f"{chosen.bits:.2f} bits about noise level and sample ({len(calibration.scores)} "
        f"candidates, the worst {min(score.bits for score in calibration.scores):.2f})"
    )
    return calibration


def with_kappa(config: TrainConfig, kappa: float) -> TrainConfig:
    """The configuration with its kappa settled."""
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"kappa": kappa})})
