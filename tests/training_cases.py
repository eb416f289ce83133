"""Small training runs on tiny pipelines."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from fera.training import Summary, TrainConfig, train
from fera.training.folder.run_folder import RunFolder
from fera.training.start.prepare import prepare
from fera.training.telling.reporter import Reporter
from fera.training.trainer import Trainer

# Width and height to how many pictures: three shapes, none of which fills its last batch of two.
MIXED = {(16, 32): 3, (32, 16): 1, (20, 20): 3}

# First lines of a script that starts DeepSpeed: on CPUs it would compile an operation that nothing here needs.
WITHOUT_COMPILER = """
import os
if "ACCELERATE_USE_DEEPSPEED" in os.environ:
    import collections
    import deepspeed.ops
    deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)
"""


def run_config(base: Path, pictures: Path, output: Path, **sections: dict) -> TrainConfig:
    """A run of six steps of batch size 2; sections override it."""
    settings: dict = {
        "base": str(base),
        "output_dir": output,
        "data": {"train_data_dir": pictures, "cache_dir": output.parent / "cache"},
        "train": {"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "consistency_weight": 0.0}
        | {"report_to": "none"},
        "validation": {"loss_samples": 8},
    }
    for section, values in sections.items():
        settings[section] = settings[section] | values if section in settings else values
    return TrainConfig.model_validate(settings)


def mixed_folder(folder: Path) -> Path:
    """A folder of pictures of the sizes in `MIXED`, each unlike the others."""
    folder.mkdir()
    for (width, height), count in MIXED.items():
        for number in range(count):
            image = Image.linear_gradient("L").resize((width, height)).rotate(90 * number).convert("RGB")
            image.putpixel((number, 0), (255, 0, 0))
            image.save(folder / f"{width}x{height}-{number}.png")
            (folder / f"{width}x{height}-{number}.txt").write_text("a red rocket")
    return folder


def log_of(config: TrainConfig, key: str) -> list:
    """Values of a key of log.jsonl."""
    lines = (config.output_dir / "log.jsonl").read_text().splitlines()
    return [record[key] for record in map(json.loads, lines) if key in record]


@contextmanager
def power_cut(step: int) -> Iterator[None]:
    """A training in here breaks off after so many steps, without a chance to save anything."""
    advance = Trainer.advance

    def cut(self: Trainer) -> None:
        if self.step == step:
            raise RuntimeError("power cut")
        advance(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Trainer, "advance", cut)
        yield


def assert_resumes(straight: TrainConfig, stopped: TrainConfig, step: int, *keys: str) -> tuple[Summary, Summary]:
    """A run that breaks off after so many steps and goes on ends as the uninterrupted one, bit for bit.

    Returns the summaries of both; the logs agree in the keys that are named.
    """
    whole = train(straight)
    with power_cut(step):
        train(stopped)
    torch.manual_seed(12345)
    resumed = train(stopped, resume=True)
    assert_same_adapter(straight, stopped)
    for key in keys:
        assert log_of(straight, key) == log_of(stopped, key), key
    return whole, resumed


def assert_same_adapter(one: TrainConfig, other: TrainConfig) -> None:
    """The finished adapters of two runs have the same files with the same weights, bit for bit."""
    files = [sorted((config.output_dir / "adapter").rglob("*.safetensors")) for config in (one, other)]
    assert files[0] and [path.name for path in files[0]] == [path.name for path in files[1]]
    for paths in zip(*files, strict=True):
        first, second = map(load_file, paths)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def trainers(base: Path, folder: Path) -> Iterator[Callable[..., Trainer]]:
    """Factory of trainers that share a base and encoded pictures, and all start from the same adapter.

    Of two trainers only the last one made is to be used: they share the adapter too.
    """
    pictures = mixed_folder(folder / "pictures")
    data = {"train_data_dir": pictures, "validation_fraction": 0.25, "resolution": 16}
    with Reporter(folder / "log.jsonl", is_main=True) as reporter:
        setup = prepare(run_config(base, pictures, folder / "run", data=data), torch.device("cpu"), reporter)
        start = {key: value.clone() for key, value in setup.denoiser.state_dict().items()}

        def make(run: Path, **settings: object) -> Trainer:
            setup.denoiser.load_state_dict(start)
            train = {"batch_size": 1, "consistency_weight": 0.1, "learning_rate": 1e-2, "steps": 4} | settings
            config = run_config(base, pictures, run, data=data, train=train, validation={"loss_samples": 2})
            run.mkdir(exist_ok=True)
            return Trainer(config, RunFolder(run), Accelerator(), setup, reporter)

        yield make


def trained_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of the weights that train, as they are now."""
    parameters = trainer._setup.denoiser.named_parameters()
    return {name: parameter.detach().clone() for name, parameter in parameters if parameter.requires_grad}
