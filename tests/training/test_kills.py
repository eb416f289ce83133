"""A run that is killed, wherever it stands, and resumed ends with the same adapter, bit for bit."""

import json
import os
import random
import time

import pytest
import torch
from crash_cases import events_of, kill_after, kill_at_event, kill_in_a_file, run, spread
from safetensors.torch import load_file
from training_cases import run_config

from fera.training import TrainConfig, train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    """Configuration of a run of a name, with all that is random switched on, each with a cache of its own."""

    def make(name: str) -> TrainConfig:
        return run_config(
            tiny_sd_dir,
            image_folder,
            tmp_path / name,
            data={"random_flip": True, "validation_fraction": 0.25, "cache_dir": tmp_path / name / "cache"},
            adapter={"target_modules": ["to_q"], "lora_dropout": 0.3},
            train={
                "batch_size": 1,
                "caption_dropout": 0.5,
                "lr_scheduler": "cosine",
                "logging_steps": 2,
                "checkpointing_steps": 3,
                "checkpoints_total_limit": 1,
            },
            validation={"loss_steps": 2, "loss_samples": 2},
        )

    return make


def started(config: TrainConfig) -> None:
    train(config, resume=(config.output_dir / "config.toml").exists())


def log_of(config: TrainConfig) -> list[dict]:
    """All lines, but for what the clock says."""
    records = map(json.loads, (config.output_dir / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in record.items() if key != "samples_per_second"} for record in records]


def assert_same(killed: TrainConfig, straight: TrainConfig, where: object) -> None:
    # Not the files: safetensors writes its metadata in any order.
    one, two = (load_file(config.output_dir / "adapter" / "adapter_model.safetensors") for config in (killed, straight))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), where
    assert log_of(killed) == log_of(straight), where
    checkpoints = [path.name for path in (killed.output_dir / "checkpoints").iterdir()]
    assert [name for name in checkpoints if name.endswith("6")] == ["step-000006"], where
    left = [path for path in killed.output_dir.rglob(".*") if path.parent.name != "cache"]
    assert not left, (where, left)


@pytest.mark.parametrize(("count", "seed"), [(4, 0), pytest.param(24, 1, marks=pytest.mark.slow)])
def test_killed_at_a_file_operation_or_step(configure, tmp_path, count, seed):
    straight = configure("straight")
    events = events_of(lambda: started(straight), straight.output_dir, tmp_path / "events")
    for index, number in enumerate(spread(events, count, seed)):
        config = configure(f"killed-{index}")
        where = (number, events[number])
        assert kill_at_event(lambda config=config: started(config), config.output_dir, number) == -9, where
        assert run(lambda config=config: started(config)) == 0, where
        assert_same(config, straight, where)


@pytest.mark.slow
def test_killed_in_the_midst_of_a_file(configure):
    straight = configure("straight")
    assert run(lambda: started(straight)) == 0
    largest = max(path.stat().st_size for path in straight.output_dir.rglob("*") if path.is_file())
    for number, size in enumerate(random.Random(2).sample(range(1000, largest), 6)):
        config = configure(f"killed-{number}")
        assert kill_in_a_file(lambda config=config: started(config), size) == -25, size
        assert run(lambda config=config: started(config)) == 0, size
        assert_same(config, straight, size)


@pytest.mark.slow
def test_killed_again_and_again_at_any_time(configure):
    straight, killed = configure("straight"), configure("killed")
    began = time.monotonic()
    assert run(lambda: started(straight)) == 0
    seconds = time.monotonic() - began
    generator = random.Random(3)
    kills = sum(kill_after(lambda: started(killed), generator.uniform(0.2, 1) * seconds) == -9 for _ in range(8))
    assert kills
    started(killed)
    assert_same(killed, straight, "any time")
