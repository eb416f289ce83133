"""`fera train`, held between two steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator

from benchmarks.contestants import EXPERTS, RANK
from benchmarks.setting import Setting
from fera.config import TrainConfig
from fera.demo import base_path, unpack_style
from fera.training.folder.run_folder import RunFolder
from fera.training.start.prepare import prepare
from fera.training.telling.reporter import Reporter
from fera.training.trainer import Trainer

STYLE = "twemoji"


@contextmanager
def style_folder(small: bool = False) -> Iterator[Path]:
    """A temporary folder with a style's pictures in `train/`; of a small one the few of the validation split."""
    with TemporaryDirectory() as folder:
        unpack_style(STYLE, folder)
        if small:
            Path(folder, "train").rename(Path(folder, "large"))
            Path(folder, "validation").rename(Path(folder, "train"))
        yield Path(folder)


def run_config(
    setting: Setting, folder: Path, name: str, batch_size: int, base: Path | None = None, **train: Any
) -> TrainConfig:
    """A run of `fera train` as its defaults have it.

    Args:
        setting: its precision.
        folder: as `style_folder` gives it; what is encoded is kept there too.
        name: of the run's own folder in it.
        batch_size: pictures a step and process.
        base: folder of the base; the emoji base by default.
        **train: other keys of the section `train`; unknown ones are refused.
    """
    return TrainConfig.model_validate(
        {
            "base": str(base or base_path()),
            "output_dir": folder / name,
            "data": {"train_data_dir": folder / "train", "cache_dir": folder / "cache"},
            "adapter": {"r": RANK, "num_experts": EXPERTS},
            "train": {"batch_size": batch_size, "mixed_precision": setting.mixed_precision} | train,
        }
    )


def trainer(
    setting: Setting, folder: Path, name: str, batch_size: int, train: Mapping[str, Any], base: Path | None = None
) -> Trainer:
    """A run after its start-up: `advance()` is one step of it, drawing, loss, checks and optimizer included.

    Args:
        setting: device and precision.
        folder: as for `run_config`.
        name: as for `run_config`.
        batch_size: pictures a step.
        train: other keys of the section `train`.
        base: as for `run_config`.
    """
    config = run_config(setting, folder, name, batch_size, base, **{"steps": 1_000_000} | dict(train))
    run = RunFolder(config.output_dir)
    reporter = Reporter(run.log, is_main=False)  # its bar would be drawn into the tables
    accelerator = Accelerator(cpu=setting.is_cpu, mixed_precision=setting.mixed_precision)
    setup = prepare(config, accelerator.device, reporter)
    return Trainer(config, run, accelerator, setup, reporter)
