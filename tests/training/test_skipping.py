"""Steps whose loss or gradient is not finite."""

import json
import os
import sys

import pytest
import torch
from listeners import train
from safetensors.torch import load_file
from training_cases import WITHOUT_COMPILER, assert_same_adapter, log_of, power_cut, run_config

from fera import FeraError
from fera.training import TrainConfig, to_toml, trainer
from fera.training.step import losses as objective
from fera.training.step.skipping import Fault, Skips, is_overflow
from fera.training.trainer import Trainer


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name: str = "run", **settings: object) -> TrainConfig:
        few = {"target_modules": ["to_q"]}
        return run_config(tiny_sd_dir, image_folder, tmp_path / name, adapter=few, train={"batch_size": 1} | settings)

    return make


def spoil(monkeypatch, *steps: int) -> None:
    """Losses of the steps of these numbers are not finite, counted from 1 over the run."""
    real = trainer.Trainer._losses

    def spoiled(self, *arguments):
        losses = real(self, *arguments)
        factor = float("nan") if self.step + 1 in steps else 1.0
        return objective.Losses(losses.denoising * factor, losses.consistency)

    monkeypatch.setattr(Trainer, "_losses", spoiled)


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.output_dir / "adapter" / "adapter_model.safetensors")


def state_of(self: Trainer) -> list[torch.Tensor]:
    state = self._optimizer.state_dict()["state"]
    tensors = [value for entry in state.values() for value in entry.values()]
    return [tensor.detach().clone() for tensor in (*self._trained, *tensors)]


def test_a_skipped_step_changes_nothing_but_its_number(configure, monkeypatch, capsys):
    spoil(monkeypatch, 3)
    seen: dict[int, list] = {}
    drawn: list[list[str]] = []
    advance, draw = Trainer.advance, trainer.draw

    def watched(self):
        advance(self)
        seen[self.step] = [*state_of(self), torch.tensor(self._lr_scheduler.last_epoch)]

    def noted(*arguments):
        batch = draw(*arguments)
        drawn.append(batch.names)
        return batch

    monkeypatch.setattr(Trainer, "advance", watched)
    monkeypatch.setattr(trainer, "draw", noted)
    config = configure()
    summary = train(config)
    assert all(torch.equal(before, after) for before, after in zip(seen[2], seen[3], strict=True))
    assert not all(torch.equal(before, after) for before, after in zip(seen[3], seen[4], strict=True))
    assert sorted(sum(drawn[:4], [])) == ["0.png", "1.png", "2.png", "3.png"], "the order of the data goes on"
    assert summary.skipped_steps == 1 and summary.samples == 6
    records = [json.loads(line) for line in (config.output_dir / "log.jsonl").read_text().splitlines()]
    assert [record for record in records if "skipped" in record] == [
        {"step": 3, "skipped": "loss", "pictures": drawn[2]}
    ]
    assert [record["step"] for record in records if "lr" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 4, 5, 6], "no NaN is averaged"
    told = capsys.readouterr().err
    assert f"step 3 is skipped: the loss is not finite on {drawn[2][0]}" in told
    assert "1 of 6 steps were skipped" in told


def test_all_of_a_step_is_skipped(configure, monkeypatch):
    """One forward of several is enough, and its gradients do not leak into the next step."""
    settings = {"gradient_accumulation_steps": 2, "steps": 2}
    real, calls = trainer.Trainer._losses, []

    def spoiled(self, *arguments):
        losses = real(self, *arguments)
        calls.append(None)
        return objective.Losses(losses.denoising * (float("nan") if len(calls) == 1 else 1.0), None)

    monkeypatch.setattr(Trainer, "_losses", spoiled)
    config = configure(**settings)
    train(config)
    assert log_of(config, "skipped") == ["loss"] and len(log_of(config, "pictures")[0]) == 1
    assert all(torch.isfinite(weight).all() for weight in weights_of(config).values())
    assert log_of(config, "loss")[0] > 0, "the forward that was finite is counted"


def test_too_many_in_a_row_end_the_run(configure, monkeypatch):
    spoil(monkeypatch, 3, 5, 6)
    with pytest.raises(FeraError) as error:
        train(configure(max_skipped_steps=1, checkpointing_steps=2, steps=8))
    message = str(error.value)
    assert "the loss is not finite at step 6 on " in message and message.count(".png") == 2
    assert "as in the 1 steps before, which were skipped" in message
    assert "step-000004; go on from it" in message and "`allow` train.learning_rate" in message
    with pytest.raises(FeraError, match="the loss is not finite at step 3 on"):
        train(configure("strict", max_skipped_steps=0, steps=8))


def test_no_checkpoint_is_made_of_a_skipped_step(configure, monkeypatch):
    """What makes losses infinite may be the weights: those before are the last good ones."""
    spoil(monkeypatch, 3, 4)
    saved: list[int] = []
    save = Trainer.save_checkpoint
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self: (saved.append(self.step), save(self)))
    train(configure(checkpointing_steps=2))
    assert saved == [2, 5, 6]


def test_resumed_between_skipped_steps(configure, monkeypatch):
    spoil(monkeypatch, 2, 3, 5)
    settings = {"checkpointing_steps": 1, "max_skipped_steps": 2, "lr_scheduler": "cosine"}
    straight, stopped = configure("straight", **settings), configure("stopped", **settings)
    train(straight)
    for step in (3, 4):
        with power_cut(step):
            train(stopped, resume=step == 4)
    summary = train(stopped, resume=True)
    assert summary.skipped_steps == 3
    assert_same_adapter(straight, stopped)
    for key in ("step", "loss", "lr", "skipped", "pictures"):
        assert log_of(straight, key) == log_of(stopped, key), key


def test_counting():
    skips = Skips()
    for fault in (Fault("loss", ["a", "b"]), Fault("gradient", ["b", "c"])):
        skips.count(fault)
    assert (skips.total, skips.in_a_row, skips.names) == (2, 2, ["a", "b", "c"])
    assert Skips(**skips.state()) == skips
    skips.count(None)
    assert (skips.total, skips.in_a_row, skips.names) == (2, 0, None)


def test_the_scaler_of_half_precision_finds_its_scale_by_overflows():
    assert is_overflow(65536.0) and is_overflow(2.0)
    assert not is_overflow(1.0) and not is_overflow(2.0**-10) and not is_overflow(None)


def test_an_overflow_is_logged_and_holds_the_schedule(configure, monkeypatch):
    """What the gradient scaler of fp16 skips, which takes a GPU to have one."""
    told = iter([True, False, False])
    monkeypatch.setattr(trainer.Accelerator, "optimizer_step_was_skipped", property(lambda self: next(told)))
    config = configure(steps=3, max_skipped_steps=0, lr_scheduler="linear", learning_rate=0.03)
    assert train(config).skipped_steps == 0
    assert log_of(config, "skipped") == ["overflow"]
    assert log_of(config, "lr") == pytest.approx([0.03, 0.03, 0.02])


SPOILED = (
    WITHOUT_COMPILER
    + """
import sys
from fera.cli import main
from fera.training.step.losses import Losses
from fera.training.trainer import Trainer
real = Trainer._losses
def spoiled(self, *arguments):
    losses = real(self, *arguments)
    faulty = self._accelerator.process_index == 1 and self.step == 1
    return Losses(losses.denoising * (float("nan") if faulty else 1.0), losses.consistency)
Trainer._losses = spoiled
sys.exit(main(["train", sys.argv[1]]))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"ACCELERATE_USE_DEEPSPEED": "true"}],
    ids=["ddp", "fsdp2", "zero2"],
)
def test_processes_skip_together(configure, tmp_path, layout):
    import subprocess

    if "ACCELERATE_USE_DEEPSPEED" in layout:
        pytest.importorskip("deepspeed")
    config = configure(steps=3)
    (tmp_path / "run.toml").write_text(to_toml(config))
    (tmp_path / "spoiled.py").write_text(SPOILED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | layout
    command = [*launch, str(tmp_path / "spoiled.py"), str(tmp_path / "run.toml")]
    subprocess.run(command, check=True, env=environment)
    assert log_of(config, "skipped") == ["loss"] and len(log_of(config, "pictures")[0]) == 1
    assert all(torch.isfinite(weight).all() for weight in weights_of(config).values())
    assert json.loads((config.output_dir / "summary.json").read_text())["skipped_steps"] == 1
