"""What a run was trained on: how many pictures, and a few of them with their captions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fera.config import DataConfig, TrainConfig
from fera.data.checking import Example, find_examples, hold_out
from fera.data.sources import check_captions, scan_training
from fera.errors import FeraError

SHOWN = 8


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run, found again.

    Args:
        training: those it was trained on.
        held_out: those its held-out loss was measured on.
    """

    training: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)

    def some(self) -> list[Example]:
        """A few training pictures, spread over the folder."""
        return spread(self.training, SHOWN)

    def real(self, prompt: str) -> Example | None:
        """The real picture of a prompt: one whose caption it is, held out if there is such a one."""
        return next((example for example in [*self.held_out, *self.training] if example.caption == prompt), None)


def read_pictures(config: TrainConfig, run: Path, problems: list[str]) -> Pictures:
    """Find a run's pictures.

    Args:
        config: the configuration of the run.
        run: its folder; data that lay in the run's folder is looked for there, wherever the folder is now.
        problems: gets a line for each folder that is not as it was.
    """
    data = config.data
    training = _training(config, run, problems)
    if data.validation_data_dir is not None:
        return Pictures(training, _find(_at_run(data.validation_data_dir, config.output_dir, run), data, problems))
    try:
        return Pictures(*hold_out(training, data.validation_fraction, data.held_out_stage)) if training else Pictures()
    except FeraError as error:
        problems.append(str(error))
        return Pictures(training)


def spread(items: Sequence[Example], count: int) -> list[Example]:
    """So many items, evenly spaced from the first to the last; all of them where they are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def _at_run(folder: Path, output_dir: Path, run: Path) -> Path:
    """Where a data folder is now: the run's folder may have been moved since."""
    if not folder.exists() and folder.is_relative_to(output_dir):
        return run / folder.relative_to(output_dir)
    return folder


def _training(config: TrainConfig, run: Path, problems: list[str]) -> list[Example]:
    data = config.data
    if data.train_data_dir is not None and not data.stages:
        return _find(_at_run(data.train_data_dir, config.output_dir, run), data, problems)
    try:
        return check_captions(scan_training(data), data.source, data).examples
    except FeraError as error:
        problems.append(f"pictures: {error}")
        return []


def _find(folder: Path, data: DataConfig, problems: list[str]) -> list[Example]:
    try:
        return find_examples(folder, data)
    except (FeraError, OSError) as error:
        problems.append(f"pictures: {error}")
        return []
