"""Several processes on a CPU: the same run in every layout, and checkpoints that any layout goes on from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_cases import WITHOUT_COMPILER, log_of, run_config

from fera.training import TrainConfig, to_toml, train

# A line each: a configuration, and settings of `train` that it is run with.
WORKER = (
    WITHOUT_COMPILER
    + """
import sys
from fera.training import load_config, train
for path in sys.argv[1:]:
    resume = path.endswith(":resume")
    allow = ["train.gradient_accumulation_steps"] if resume else []
    train(load_config(path.removesuffix(":resume")), resume=resume, allow=allow)
"""
)
LAYOUTS = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
}


def in_two_processes(folder: Path, environment: dict[str, str], *paths: str) -> None:
    """Runs one after another in the same two processes."""
    (folder / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    done = subprocess.run([*launch, str(folder / "worker.py"), *paths], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:8000]


def from_checkpoint(source: TrainConfig, folder: Path, processes: int) -> TrainConfig:
    """A run that is to go on from the first checkpoint of another."""
    target = shared_batch(source, folder, processes)
    shutil.copytree(source.output_dir, folder)
    for newer in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(newer)
    return target


def shared_batch(config: TrainConfig, folder: Path, processes: int) -> TrainConfig:
    """The run in another folder; what processes do at once, a process alone does one after the other."""
    train = config.train.model_copy(update={"gradient_accumulation_steps": 2 // processes})
    return config.model_copy(update={"output_dir": folder, "train": train})


def assert_same_run(one: TrainConfig, other: TrainConfig) -> None:
    for key in ("loss", "consistency", "lr", "held_out_loss", "skipped"):
        assert log_of(one, key) == pytest.approx(log_of(other, key), rel=2e-4), key
    paths = (next((config.output_dir / "adapter").glob("*.safetensors")) for config in (one, other))
    first, second = map(load_file, paths)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, second[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.slow
def test_routed_updates_and_phases_are_those_of_one_process(tiny_sd_dir, image_folder, tmp_path):
    """Under DDP, where processes must choose the same experts and stop learning the same weights."""
    sections = {
        "train": {"steps": 6, "checkpointing_steps": 3, "gradient_accumulation_steps": 2, "adam_epsilon": 1e-4}
        | {"learning_rate": 1e-3, "soft_prompt_then_freeze": 0.5},
        "adapter": {"router": "gradient", "ranks": [3, 1], "num_virtual_tokens": 2},
    }
    alone = run_config(tiny_sd_dir, image_folder, tmp_path / "alone", **sections)
    train(alone)
    both = shared_batch(alone, tmp_path / "both", 2)
    Path(f"{both.output_dir}.toml").write_text(to_toml(both))
    in_two_processes(tmp_path, LAYOUTS["ddp"], f"{both.output_dir}.toml")
    assert_same_run(alone, both)
    assert log_of(alone, "updates") == log_of(both, "updates")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_runs_and_checkpoints_are_those_of_one_process(tiny_sd_dir, image_folder, tmp_path, layout):
    """With the consistency loss on a part of the steps, and measured on the way."""
    if layout.startswith("zero"):
        pytest.importorskip("deepspeed")
    sections = {
        "data": {"train_data_dir": image_folder, "cache_dir": tmp_path / "cache", "validation_fraction": 0.25},
        # A large epsilon: else Adam turns rounding in tiny gradients into whole steps.
        "train": {"steps": 4, "checkpointing_steps": 2, "learning_rate": 1e-3, "consistency_weight": 0.1}
        | {"consistency_fraction": 0.5, "gradient_accumulation_steps": 2, "adam_epsilon": 1e-4},
        "validation": {"loss_samples": 4, "loss_steps": 2},
    }
    if layout == "zero1":  # a state that is worth sharing, weights of any shape, and two groups that are empty
        sections["adapter"] = {"full": True}
        sections["train"] |= {"use_ema": True, "consistency_weight": 0.0}
    alone = run_config(tiny_sd_dir, image_folder, tmp_path / "alone", **sections)
    train(alone)
    both = shared_batch(alone, tmp_path / "both", 2)
    from_alone = from_checkpoint(alone, tmp_path / "from_alone", 2)
    for config in (both, from_alone):
        Path(f"{config.output_dir}.toml").write_text(to_toml(config))
    paths = f"{both.output_dir}.toml", f"{from_alone.output_dir}.toml:resume"
    in_two_processes(tmp_path, LAYOUTS[layout], *paths)
    assert_same_run(alone, both)
    assert_same_run(alone, from_alone)
    from_both = from_checkpoint(both, tmp_path / "from_both", 1)
    train(from_both, resume=True, allow=["train.gradient_accumulation_steps"])
    assert_same_run(alone, from_both)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "zero2"])
def test_half_precision_in_two_processes(tiny_sd_dir, image_folder, tmp_path, layout):
    """Losses are those of one process in bf16, as near as bf16 is, and what trains stays in float32."""
    if layout == "zero2":
        pytest.importorskip("deepspeed")
    sections = {
        "data": {"train_data_dir": image_folder, "cache_dir": tmp_path / "cache", "validation_fraction": 0.25},
        "train": {"steps": 4, "checkpointing_steps": 2, "learning_rate": 1e-3, "mixed_precision": "bf16"}
        | {"consistency_weight": 0.1, "gradient_accumulation_steps": 2, "adam_epsilon": 1e-4},
        "validation": {"loss_samples": 4, "loss_steps": 2},
    }
    alone = run_config(tiny_sd_dir, image_folder, tmp_path / "alone", **sections)
    train(alone)
    both = shared_batch(alone, tmp_path / "both", 2)
    Path(f"{both.output_dir}.toml").write_text(to_toml(both))
    in_two_processes(tmp_path, LAYOUTS[layout], f"{both.output_dir}.toml")
    for key in ("loss", "held_out_loss"):
        assert log_of(alone, key) == pytest.approx(log_of(both, key), rel=1e-2), key
    saved = load_file(next((both.output_dir / "adapter").glob("*.safetensors")))
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
