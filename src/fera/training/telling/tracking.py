"""Trackers: TensorBoard, Weights & Biases and trackio get what log.jsonl gets, and pictures and histograms besides.

accelerate's trackers do the writing. Nothing of a tracker's package is imported before a run starts that uses it.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available
from PIL import Image
from torch import Tensor

from fera.config import TrainConfig
from fera.config.reading import shareable_settings
from fera.errors import PROGRAMMING_ERRORS, FeraError

_IS_INSTALLED = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}
# As log.jsonl calls a list, and what its entries are in a tracker.
_ENTRIES = {"gates": "expert", "bands": "band"}


def chosen_trackers(report_to: Sequence[str] | None) -> list[str]:
    """Names of the trackers that a run reports to.

    Args:
        report_to: as `train.report_to`; None is TensorBoard where it is installed.

    Raises:
        FeraError: a tracker is asked for that is not installed.
    """
    installed = [name for name, is_installed in _IS_INSTALLED.items() if is_installed()]
    if report_to is None:
        return [name for name in installed if name == "tensorboard"]
    if "all" in report_to:
        return installed
    asked = [name for name in dict.fromkeys(report_to) if name != "none"]
    if missing := [name for name in asked if name not in installed]:
        raise FeraError(
            f"train.report_to asks for {' and '.join(missing)}, which cannot be imported here: "
            f'pip install {" ".join(missing)}, or set train.report_to = "none"'
        )
    return asked


def open_trackers(config: TrainConfig, names: Sequence[str], resumed: int | None) -> list[GeneralTracker]:
    """Trackers for `Accelerator(log_with=...)`, not started yet.

    A run has an identity of its own, kept in its logging folder, by which its continuation is found again.

    Args:
        config: the configuration of the run.
        names: the names of the trackers.
        resumed: step that an earlier start of the run is continued from; None for a new one.
    """
    name = config.output_dir.resolve().name or "run"
    project = config.train.tracker_project_name
    folder = config.train.logging_dir or config.output_dir / "logs"
    trackers: list[GeneralTracker] = []
    for tracker in names:
        if tracker == "tensorboard":
            # What was written after that step is taken back.
            after = {} if resumed is None else {"purge_step": resumed + 1}
            trackers.append(TensorBoardTracker(name, folder, **after))
        elif tracker == "wandb":
            trackers.append(WandBTracker(project, name=name, resume="allow", dir=str(folder)))
        else:
            trackers.append(TrackioTracker(project, resume="allow"))
    return trackers


class Trackers:
    """The trackers of one run, on its main process.

    Args:
        accelerator: holds them.
        logged: last step that an earlier start of the run has logged; -1 for a new run.
    """

    def __init__(self, accelerator: Accelerator, logged: int = -1) -> None:
        self._trackers = accelerator.trackers
        self._logged = logged

    @classmethod
    def start(cls, accelerator: Accelerator, config: TrainConfig, *, resumed: bool, logged: int = -1) -> "Trackers":
        """Start them, now that the run's folder is ready.

        Args:
            accelerator: made with `open_trackers`.
            config: the configuration of the run.
            resumed: whether this continues an earlier start of the run.
            logged: last step that the earlier start has logged.

        Raises:
            FeraError: one of them does not start: nobody is logged in, the folder cannot be written.
        """
        if not accelerator.log_with:
            return cls(accelerator)
        folder = config.train.logging_dir or config.output_dir / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _identify(accelerator.log_with, folder / f"{config.output_dir.resolve().name}.id", resumed=resumed)
            settings = {name: _plain(value) for name, value in shareable_settings(config).items()}
            accelerator.init_trackers(config.train.tracker_project_name, None if resumed else settings)
        except PROGRAMMING_ERRORS:
            raise
        except Exception as error:  # each tracker raises kinds of its own
            names = ", ".join(tracker.name for tracker in accelerator.log_with)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FeraError(
                f"cannot report to {names}: {reason}. Log in to it, or choose others in train.report_to "
                '("none" for none)'
            ) from error
        return cls(accelerator, logged)

    def log(self, record: Mapping[str, Any], distributions: Mapping[str, Tensor]) -> None:
        """Send a line of log.jsonl.

        Args:
            record: the line. Numbers keep their names, an entry of "gates" becomes "gates/expert_1".
            distributions: name to a value a sample and entry, shape (N, entries), on the CPU. Each becomes a histogram
                an entry; those that are not in `record` are also sent as means.
        """
        step = record["step"]
        means = {name: values.mean(dim=0).tolist() for name, values in distributions.items()}
        scalars: dict[str, float] = {}
        for name, value in (means | dict(record)).items():
            if name in _ENTRIES:
                scalars |= {_entry(name, index): entry for index, entry in enumerate(value)}
            elif name != "step" and isinstance(value, int | float):
                scalars[name] = value
        histograms = {
            _entry(f"{name}_histogram", index, kind=_ENTRIES[name]): column.numpy()
            for name, values in distributions.items()
            for index, column in enumerate(values.T)
        }
        for tracker in self._open_at(step):
            tracker.log(scalars, step=step)
            _log_histograms(tracker, histograms, step)

    def show(self, step: int, prompts: Sequence[str], images: Sequence[Image.Image]) -> None:
        """Send pictures, one a prompt, with the prompts as captions."""
        for tracker in self._open_at(step):
            _log_images(tracker, prompts, images, step)

    def finish(self) -> None:
        """Write what is left. The processes of the run stay together: they belong to who called `train`."""
        for tracker in self._trackers:
            tracker.finish()

    def _open_at(self, step: int) -> list[GeneralTracker]:
        """Trackers that have not got this step from an earlier start of the run. TensorBoard has taken it back."""
        return [tracker for tracker in self._trackers if tracker.name == "tensorboard" or step > self._logged]


def _identify(trackers: Sequence[GeneralTracker], file: Path, *, resumed: bool) -> None:
    """Give the run its identity, the one that it had before if it is resumed."""
    services = [tracker for tracker in trackers if isinstance(tracker, WandBTracker | TrackioTracker)]
    if not services:
        return
    if not (resumed and file.exists()):
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    identity = file.read_text(encoding="utf-8").strip()
    for tracker in services:
        # trackio knows runs by their names.
        own = {"id": identity} if tracker.name == "wandb" else {"name": f"{file.stem}-{identity}"}
        tracker.init_kwargs |= own


def _log_histograms(tracker: GeneralTracker, histograms: Mapping[str, np.ndarray], step: int) -> None:
    if tracker.name == "tensorboard":
        for name, values in histograms.items():
            tracker.tracker.add_histogram(name, values, step)
        tracker.tracker.flush()
    elif histograms:
        made = _module(tracker)
        tracker.log({name: made.Histogram(values) for name, values in histograms.items()}, step=step)


def _log_images(tracker: GeneralTracker, prompts: Sequence[str], images: Sequence[Image.Image], step: int) -> None:
    from fera.generation import file_stem

    names = [f"validation/{file_stem(index, prompt)}" for index, prompt in enumerate(prompts)]
    if tracker.name != "tensorboard":
        made = _module(tracker)
        captioned = zip(names, prompts, images, strict=True)
        tracker.log({name: made.Image(image, caption=prompt) for name, prompt, image in captioned}, step=step)
        return
    writer = tracker.tracker
    for name, image in zip(names, images, strict=True):
        writer.add_image(name, np.asarray(image), step, dataformats="HWC")
    # It has no captions. Indented, a prompt is no Markdown.
    lines = [f"    {index:03d} {' '.join(prompt.split())}" for index, prompt in enumerate(prompts)]
    writer.add_text("validation/prompts", "\n".join(lines), step)
    writer.flush()


def _module(tracker: GeneralTracker) -> Any:
    if tracker.name == "wandb":
        import wandb

        return wandb
    import trackio

    return trackio


def _entry(name: str, index: int, kind: str | None = None) -> str:
    return f"{name}/{kind or _ENTRIES[name]}_{index + 1}"


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
