"""What a run came to."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fera.config import TrainConfig
from fera.training.progress import Progress
from fera.training.start.prepare import Setup
from fera.version import __version__


@dataclass(frozen=True)
class Summary:
    """What a run came to; `summary.json` holds the same.

    Args:
        adapter: folder of the finished adapter.
        base: the pipeline it belongs to.
        revision: the revision of the base.
        steps: optimizer steps.
        samples: training samples seen.
        training_pictures: how many an epoch has: repeats and class pictures are counted.
        skipped_pictures: how many were left out because they cannot be read.
        skipped_steps: how many were left out because their loss or gradient was not finite.
        parameters: trained ones.
        average: which average over the steps the adapter holds, "ema" or "schedule_free"; None for the last weights.
        kappa: the kappa of the adapter, as given or as chosen; None for baselines.
        seconds: the seconds of this start of the run, with loading, encoding, pictures and held-out losses.
        training_seconds: the seconds of all optimizer steps, over all starts of the run.
        samples_per_second: over these.
        held_out_loss_before: before the first step; None where nothing is held out.
        held_out_loss_after: after the last one.
        versions: the versions of the libraries.
    """

    adapter: str
    base: str
    revision: str | None
    steps: int
    samples: int
    training_pictures: int
    skipped_pictures: int
    skipped_steps: int
    parameters: int
    average: str | None
    kappa: float | None
    seconds: float
    training_seconds: float
    samples_per_second: float
    held_out_loss_before: float | None
    held_out_loss_after: float | None
    versions: dict[str, str]


def summarize(
    *,
    config: TrainConfig,
    setup: Setup,
    adapter: Path,
    progress: Progress,
    samples: int,
    seconds: float,
    average: str | None,
) -> Summary:
    """Put a run's summary together.

    Args:
        config: the configuration of the run.
        setup: the setup of the run.
        adapter: folder of the finished adapter.
        progress: the progress of the run.
        samples: training samples seen.
        seconds: the seconds of this start of the run.
        average: name of the average that the adapter holds.
    """
    libraries = ("torch", "diffusers", "peft", "transformers", "accelerate")
    return Summary(
        adapter=str(adapter),
        base=config.base,
        revision=config.revision,
        steps=config.train.steps,
        samples=samples,
        training_pictures=len(setup.training),
        skipped_pictures=len(setup.skipped),
        skipped_steps=progress.skips.total,
        parameters=setup.parameters,
        average=average,
        kappa=setup.bands.kappa if setup.bands is not None else None,
        seconds=round(seconds, 2),
        training_seconds=round(progress.training_seconds, 2),
        samples_per_second=round(samples / max(progress.training_seconds, 1e-9), 2),
        held_out_loss_before=progress.held_out.get(0),
        held_out_loss_after=progress.held_out.get(config.train.steps),
        versions={"fera": __version__} | {name: version(name) for name in libraries},
    )
