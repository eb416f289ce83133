r"""How well each band of real pictures is recovered from each noise level, in one prediction.

A picture's latent :math:`z_0` is noised to :math:`z_t`, the denoiser predicts once, and the clean latent
:math:`\hat z_0` that this implies is compared with the true one: the energy of :math:`\hat z_0 - z_0` in a band, over
that of :math:`z_0`, is 0 where the band is recovered, and 1 where nothing of it is.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fera.analysis.energies import Energies, mean_square
from fera.config import TrainConfig
from fera.config.reading import load_config
from fera.data.cache.encoded import Batch
from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.models.noise import NoiseProcess, spread_timesteps
from fera.pipelines.block_offload import move
from fera.pipelines.clean import denoised, process_scales
from fera.support.progress import SILENT
from fera.training.start.encoding import encode
from fera.training.start.opening import Sources, open_sources

_BATCH = 8


def open_pictures(
    base: str, folder: Path, *, count: int, resolution: int | None = None, precision: str = "no"
) -> Sources:
    """Load a base and find pictures.

    Args:
        base: a pipeline that fera can train: a folder, a Hub id, or "emoji".
        folder: pictures, with captions or without; what has none goes by the empty caption.
        count: how many to look at, the first ones, at least 1.
        resolution: side of the square that they are brought to, in pixels; the base's own when left out.
        precision: the precision of the base's weights: "no" (float32), "fp16" or "bf16".

    Raises:
        FeraError: there are no usable pictures, or the base cannot be loaded or is none that fera can train.
    """
    if count < 1:
        raise FeraError(f"a reconstruction needs at least one picture, got {count}")
    sources = open_sources(_config(base, folder, resolution, precision), SILENT)
    sources.base.bring()
    return replace(sources, training=sources.training[:count])


class Pictures:
    """Encoded pictures, and how a denoiser is asked about them.

    Args:
        sources: as `open_pictures` gives them; the pipeline's parts are on `device` afterwards.
        device: where to compute.
    """

    def __init__(self, sources: Sources, device: str) -> None:
        self._sources = sources
        folder = sources.training[0].image.parent
        precisions = {torch.float16: "fp16", torch.bfloat16: "bf16"}
        config = _config("-", folder, sources.resolution, precisions.get(sources.dtype, "no"))
        # What is encoded here serves once.
        with tempfile.TemporaryDirectory(prefix="fera-analysis-") as cache:
            config = config.model_copy(update={"output_dir": Path(cache)})
            encoded = encode(replace(sources, held_out=[]), config, torch.device(device), SILENT).training
            starts = range(0, len(encoded), _BATCH)
            self._batches = [encoded.batch(range(i, min(i + _BATCH, len(encoded)))) for i in starts]
        # Encoding leaves its parts on the CPU, and the autoencoder in float32.
        move(sources.pipe, device)
        sources.pipe.vae.to(sources.dtype)

    def __len__(self) -> int:
        return sum(len(batch.names) for batch in self._batches)

    @torch.no_grad()
    def reconstruct(
        self,
        bands: FrequencyBands,
        *,
        model: str,
        levels: int = 10,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Energies:
        """Band energies at noise levels that cover the process evenly.

        Picture i gets the noise of seed + i at every level, and whatever the adapter: models compare pair by pair.

        Args:
            bands: what to measure with.
            model: what to call it.
            levels: L, at least 1.
            seed: the seed of the noise.
            progress: told how many (picture, level) pairs are done.

        Returns:
            Energies of "noisy" (z_t), "clean" (the predicted clean latent), "error" (its difference from the true
            one) and "data" (the true one), noise to clean.

        Raises:
            FeraError: `levels` is below 1.
        """
        if levels < 1:
            raise FeraError(f"a reconstruction needs at least one noise level, got {levels}")
        timesteps = spread_timesteps(self._sources.process, levels)
        parts: dict[str, list[Tensor]] = {"noisy": [], "clean": [], "error": [], "data": []}
        done = 0
        for batch in self._batches:
            signals = self._at_levels(batch, timesteps, seed + done)
            rows: dict[str, list[Tensor]] = {name: [] for name in parts}
            for level, at_level in enumerate(signals, 1):
                for name, latent in at_level.items():
                    rows[name].append(mean_square(bands, latent))
                if progress is not None:
                    progress(done * levels + level * len(batch.names))
            for name, energies in rows.items():
                parts[name].append(torch.stack(energies))
            done += len(batch.names)
        return Energies(model, timesteps.tolist(), {name: torch.cat(rows, dim=1) for name, rows in parts.items()})

    def _at_levels(self, batch: Batch, timesteps: Tensor, seed: int) -> Iterator[dict[str, Tensor]]:
        process: NoiseProcess = self._sources.process
        denoiser: Any = self._sources.denoiser
        device, dtype = denoiser.device, denoiser.dtype
        latents = batch.latents.to(device)
        noise = _noise(latents, seed)
        conditions = {name: value.to(device, dtype) for name, value in batch.conditions.items()}
        for timestep in timesteps:
            moments = timestep.repeat(len(latents)).to(device)
            noisy = process.add_noise(latents, noise, moments)
            prediction = self._sources.family.predict(denoiser, noisy.to(dtype), moments, conditions)
            clean = denoised(process.prediction_type, noisy, prediction, *process_scales(process, moments))
            yield {"noisy": noisy, "clean": clean, "error": clean - latents, "data": latents}


def relative_error(energies: Energies) -> Tensor:
    """Energy of the error over that of the data in each band, of all pictures together, shape (S, K)."""
    data = energies.signals["data"].mean(dim=1)
    return energies.signals["error"].mean(dim=1) / data.clamp_min(torch.finfo(data.dtype).tiny)


def _noise(latents: Tensor, seed: int) -> Tensor:
    rows = [
        torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed + row))
        for row in range(len(latents))
    ]
    return torch.stack(rows).to(latents)


def _config(base: str, folder: Path, resolution: int | None, precision: str) -> TrainConfig:
    """The training run whose pictures these would be: it finds and encodes them."""
    given = {
        "base": base,
        "output_dir": "unused",
        "data.train_data_dir": str(folder),
        "data.allow_missing_captions": "true",
        "train.mixed_precision": precision,
    }
    return load_config(None, given if resolution is None else given | {"data.resolution": str(resolution)})
