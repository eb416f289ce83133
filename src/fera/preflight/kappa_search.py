"""What `fera calibrate` does: choose kappa for a training run without training."""

import json
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from fera.config import TrainConfig
from fera.config.reading import load_config
from fera.errors import FeraError
from fera.method.calibration import Calibration
from fera.preflight.kappa_plot import plot_calibration
from fera.support.progress import SILENT, Listener
from fera.training.start.encoding import encode
from fera.training.start.kappa import calibrate
from fera.training.start.opening import open_sources


def calibration_config(
    path: Path | None,
    *,
    base: str | None,
    data: Path | None,
    resolution: int | None,
    num_bands: int | None,
    output: Path,
) -> TrainConfig:
    """The training run whose latents are looked at.

    Args:
        path: its configuration; None describes it by `base` and `data`.
        base: diffusers pipeline; the configuration's when left out.
        data: folder of pictures; the configuration's when left out.
        resolution: side of the pictures in pixels; likewise.
        num_bands: K; likewise.
        output: where encoded pictures go when there is no configuration.

    Raises:
        FeraError: there is neither a configuration nor both base and data, or a value is out of range.
    """
    if path is None and (base is None or data is None):
        raise FeraError("fera calibrate needs the configuration of a training run, or `base` and `data`")
    given = {
        "base": base,
        "data.train_data_dir": data,
        "data.resolution": resolution,
        "adapter.num_bands": num_bands,
        "output_dir": output if path is None else None,
    }
    return load_config(path, {name: str(value) for name, value in given.items() if value is not None})


def calibrate_run(config: TrainConfig, output: Path, listener: Listener = SILENT) -> Calibration:
    """Score kappas on a run's training latents; the latents stay in the run's cache.

    Args:
        config: the configuration of the run; its own kappa does not matter.
        output: gets `calibration.json` and `calibration.png`.
        listener: hears what happens.

    Raises:
        FeraError: the data or the base cannot work, or the folder cannot be written.
    """
    device = Accelerator().device
    # The denoiser is not asked, so there is no point in quantizing it.
    sources = open_sources(config.model_copy(update={"quantization": "none"}), listener)
    training = encode(sources, config, device, listener).training
    calibration = calibrate(training, sources.process, config, device, listener)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "calibration.json").write_text(json.dumps(asdict(calibration), indent=2) + "\n", encoding="utf-8")
        plot_calibration(calibration, output / "calibration.png")
    except OSError as error:
        raise FeraError(f"cannot write to {output}: {error.strerror}") from error
    return calibration
