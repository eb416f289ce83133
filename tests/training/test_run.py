"""Whole runs on tiny real pipelines."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from listeners import train
from peft import PeftModel
from safetensors.torch import load_file
from training_cases import assert_resumes, assert_same_adapter, log_of

import fera
from fera.pipelines.base import load_base
from fera.training import TrainConfig, load_config
from fera.training.step.randomness import mixed_seed, rows_at
from fera.training.trainer import Trainer

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    """Factory of small configurations: `configure("name", train={...})`."""

    def make(name: str = "run", **sections: object) -> TrainConfig:
        settings: dict = {
            "base": str(tiny_sd_dir),
            "output_dir": tmp_path / name,
            "data": {"train_data_dir": image_folder, "cache_dir": tmp_path / "cache"},
            "train": {"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "logging_steps": 2},
            "validation": {"loss_samples": 8},
        }
        for section, values in sections.items():
            settings[section] = settings.get(section, {}) | values if isinstance(values, dict) else values
        return TrainConfig.model_validate(settings)

    return make


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.output_dir / WEIGHTS)


def test_run_folder_and_log(configure, image_folder):
    config = configure(data={"validation_fraction": 0.25})
    summary = train(config)
    names = {path.name for path in config.output_dir.iterdir()}
    assert names == {"adapter", "checkpoints", "config.toml", "log.jsonl", "logs", "summary.json"}
    assert load_config(config.output_dir / "config.toml") == config
    assert json.loads((config.output_dir / "summary.json").read_text())["steps"] == 6
    assert summary.samples == 12 and summary.training_pictures == 3
    assert log_of(config, "loss") and len(log_of(config, "loss")) == 3
    for gates in log_of(config, "gates"):
        assert len(gates) == 3 and sum(gates) == pytest.approx(1, abs=1e-4)
    assert all(0 < entropy <= 1 for entropy in log_of(config, "gate_entropy"))
    assert all(0 <= value <= 1 for value in log_of(config, "consistency"))
    assert log_of(config, "held_out_loss") == pytest.approx(
        [summary.held_out_loss_before, summary.held_out_loss_after], rel=1e-5
    )


def test_adapter_loads_the_ways_users_load_it(configure, tiny_sd_dir):
    config = configure()
    train(config)
    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, config.output_dir)
    unet = UNet2DConditionModel.from_pretrained(tiny_sd_dir, subfolder="unet")
    model = PeftModel.from_pretrained(unet, config.output_dir / "adapter")
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 16, 32))
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(*inputs)[0], model(*inputs)[0], rtol=1e-4, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(pipe.unet(*inputs)[0], model(*inputs)[0], rtol=1e-4, atol=1e-5)


def test_learns_its_pictures(configure, image_folder):
    config = configure(
        data={"validation_data_dir": image_folder},
        train={"steps": 60, "batch_size": 4, "consistency_weight": 0.0},
        validation={"loss_samples": 16},
    )
    summary = train(config)
    assert summary.held_out_loss_after < 0.97 * summary.held_out_loss_before
    assert not log_of(config, "consistency")


def test_held_out_loss_before_is_the_bases_and_repeats(configure):
    first = train(configure("one", data={"validation_fraction": 0.25}))
    other = configure("two", data={"validation_fraction": 0.25}, adapter={"r": 2}, train={"batch_size": 1})
    assert train(other).held_out_loss_before == pytest.approx(first.held_out_loss_before, rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_consistency_costs_a_forward_only_when_on(configure, monkeypatch, weight):
    calls = []
    forward = UNet2DConditionModel.forward
    monkeypatch.setattr(
        UNet2DConditionModel,
        "forward",
        lambda self, sample, timestep, encoder_hidden_states, return_dict=True: (
            calls.append(torch.is_grad_enabled())
            or forward(self, sample, timestep, encoder_hidden_states, return_dict=return_dict)
        ),
    )
    train(configure(train={"steps": 2, "consistency_weight": weight}))
    assert calls == ([False, True] * 2 if weight else [True] * 2)


def test_consistency_on_some_batches_costs_their_forwards(configure, monkeypatch):
    calls = []
    forward = UNet2DConditionModel.forward

    def noting(self, sample, timestep, encoder_hidden_states, return_dict=True):
        calls.append(torch.is_grad_enabled())
        return forward(self, sample, timestep, encoder_hidden_states, return_dict=return_dict)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    settings = {"steps": 4, "logging_steps": 1, "consistency_weight": 0.1, "consistency_fraction": 0.5}
    config = configure(train=settings)
    train(config)
    assert calls == [True, False, True, True, False, True]
    lines = map(json.loads, (config.output_dir / "log.jsonl").read_text().splitlines())
    assert ["consistency" in line for line in lines if "loss" in line] == [False, True, False, True]


def test_consistency_on_some_batches_weighs_as_much(configure, monkeypatch):
    """Two steps, the second of which has it: as with all of the weight on every batch, and none on the first."""
    monkeypatch.setattr("fera.training.trainer.is_chosen", lambda fraction, number: number == 1)
    weights = {}
    for weight, fraction in ((0.1, 0.5), (0.2, 1.0)):
        config = configure(
            f"{weight}", train={"steps": 2, "consistency_weight": weight, "consistency_fraction": fraction}
        )
        train(config)
        weights[weight] = weights_of(config)
    assert all(torch.equal(weights[0.1][name], weights[0.2][name]) for name in weights[0.1])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resumed_run_equals_an_uninterrupted_one(configure, schedule):
    """With everything random switched on, stopped between two lines of the log."""
    sections = {
        "data": {"random_flip": True, "validation_fraction": 0.25},
        "adapter": {"lora_dropout": 0.3},
        "train": {
            "caption_dropout": 0.5,
            "gradient_accumulation_steps": 2,
            "lr_scheduler": schedule,
            "checkpointing_steps": 3,
            "noise_offset": 0.1,
        },
    }
    straight, stopped = configure("straight", **sections), configure("stopped", **sections)
    keys = ("step", "loss", "consistency", "lr", "gates", "held_out_loss")
    _, summary = assert_resumes(straight, stopped, 4, *keys)
    assert summary.held_out_loss_before is not None


def test_run_can_be_prolonged(configure):
    straight, prolonged = configure("straight"), configure("prolonged", train={"steps": 2})
    train(straight)
    train(prolonged)
    train(configure("prolonged"), resume=True)
    assert_same_adapter(straight, prolonged)


@pytest.mark.parametrize("steps", [3, 2])
def test_resuming_a_run_that_has_done_its_steps_says_so_and_leaves_it(configure, capsys, steps):
    train(configure("run", train={"steps": 3}))
    before = weights_of(configure("run"))
    capsys.readouterr()
    train(configure("run", train={"steps": steps}), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "step 3, epoch" in said and f"no step is left to train: train.steps is {steps}" in said
    after = weights_of(configure("run"))
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_accumulation_equals_a_larger_batch(configure):
    whole = configure("whole", train={"batch_size": 4, "steps": 3, "learning_rate": 1e-3})
    parts = configure(
        "parts", train={"batch_size": 1, "gradient_accumulation_steps": 4, "steps": 3, "learning_rate": 1e-3}
    )
    train(whole), train(parts)
    assert log_of(whole, "loss")[0] == pytest.approx(log_of(parts, "loss")[0], rel=1e-3)
    one, two = weights_of(whole), weights_of(parts)
    # Adam turns rounding in tiny gradients into steps of its own, so compare directions over all weights.
    flat = [torch.cat([held[key].flatten() for key in sorted(held) if "experts_B" in key]) for held in (one, two)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


def test_interrupt_saves_and_resume_completes(configure, monkeypatch, capsys):
    straight, stopped = configure("straight"), configure("stopped")
    train(straight)
    advance = Trainer.advance

    def interrupt_in_the_middle(self):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        advance(self)

    handler = signal.getsignal(signal.SIGINT)  # a shell in the background starts its children with another
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupt_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in (stopped.output_dir / "checkpoints").iterdir()] == ["step-000003"]
    assert f"fera train {stopped.output_dir / 'config.toml'} --resume" in capsys.readouterr().err
    train(stopped, resume=True)
    assert_same_adapter(straight, stopped)


def test_trains_outside_the_main_thread(configure):
    """Where signals cannot be listened to; the adapter is the main thread's."""
    beside, straight = configure("beside"), configure("straight")
    thread = threading.Thread(target=train, args=(beside,))
    thread.start()
    thread.join()
    train(straight)
    assert_same_adapter(beside, straight)


def test_gradient_checkpointing_changes_nothing(configure):
    plain, checkpointed = configure("plain"), configure("checkpointed", train={"gradient_checkpointing": True})
    train(plain), train(checkpointed)
    one, two = weights_of(plain), weights_of(checkpointed)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)


def test_router_rate_of_zero_leaves_the_router(configure):
    frozen, trained = configure("frozen", train={"router_lr_ratio": 0.0}), configure("trained")
    short = configure("short", train={"steps": 1, "router_lr_ratio": 0.0})
    for config in (frozen, trained, short):
        train(config)
    routers = [
        {key: value for key, value in weights_of(config).items() if "router" in key}
        for config in (frozen, short, trained)
    ]
    assert routers[0]
    # AdamW's decay is scaled by the rate, so nothing moves.
    assert all(torch.equal(routers[0][key], routers[1][key]) for key in routers[0])
    assert not all(torch.equal(routers[0][key], routers[2][key]) for key in routers[0])


def test_half_precision_keeps_the_adapter_in_float32(configure):
    config = configure(
        data={"validation_fraction": 0.25},
        train={"mixed_precision": "bf16", "steps": 2},
        validation={"prompts": ["a red rocket"], "num_inference_steps": 2},
    )
    summary = train(config)
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(config).values())
    assert 0 < summary.held_out_loss_after != summary.held_out_loss_before
    assert all(value.any() for key, value in weights_of(config).items() if "experts_B" in key), "B starts at zero"
    assert (config.output_dir / "samples" / "step-000002.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this device has fp16")
def test_fp16_needs_a_device_that_has_it(configure):
    with pytest.raises(fera.FeraError, match="fp16 needs a GPU, and this is cpu.*use bf16 or no"):
        train(configure(train={"mixed_precision": "fp16"}))


def test_sd3(configure, tiny_sd3_dir):
    config = configure(
        base=str(tiny_sd3_dir),
        data={"validation_fraction": 0.25},
        validation={"prompts": ["a red rocket"], "num_inference_steps": 2},
    )
    train(config)
    pipe = load_base(str(tiny_sd3_dir))
    fera.load_adapter(pipe, config.output_dir)
    with fera.trace(pipe) as steps:
        pipe("a red rocket", height=16, width=16, num_inference_steps=2, guidance_scale=1.0)
    assert len(steps) == 2


def test_what_happens_to_the_data_is_said(configure, image_folder, capsys):
    (image_folder / "0.txt").write_text("a red rocket " * 20)
    train(configure(data={"resolution": 32}, train={"steps": 1}))
    told = capsys.readouterr().err
    assert "captions cut at the 16 tokens that text_encoder reads: 1 (0.png), 0.png from" in told
    assert "4 pictures are smaller than 32 px and are enlarged: 0.png, 1.png, 2.png, 3.png" in told
    assert "1.png: a green tree" in told


def test_learning_rate_in_the_log_is_the_one_used(configure):
    config = configure(train={"lr_scheduler": "linear", "learning_rate": 0.01, "logging_steps": 1, "steps": 4})
    train(config)
    assert log_of(config, "lr") == [0.01, 0.0075, 0.005, 0.0025]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddpm_bases(configure, tmp_path, prediction_type):
    from diffusers import DDIMScheduler
    from tiny import make_sd_pipeline

    pipe = make_sd_pipeline()
    pipe.scheduler = DDIMScheduler(prediction_type=prediction_type, steps_offset=1, clip_sample=False)
    pipe.save_pretrained(tmp_path / "ddpm")
    config = configure(base=str(tmp_path / "ddpm"), train={"snr_gamma": 5.0})
    train(config)
    assert len(log_of(config, "loss")) == 3


def test_every_epoch_sees_every_example():
    order = rows_at(0, 35, 7, seed=3)
    assert all(sorted(order[start : start + 7]) == list(range(7)) for start in range(0, 35, 7))
    assert order[:7] != order[7:14]
    assert rows_at(5, 10, 7, seed=3) == order[5:15]
    assert rows_at(0, 7, 7, seed=4) != order[:7]


def test_mixed_seeds_do_not_collide():
    seeds = {mixed_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.slow
def test_two_processes_equal_one(configure, tmp_path):
    import subprocess
    import sys

    from fera.training import to_toml

    alone = configure("alone", train={"batch_size": 4, "steps": 3, "learning_rate": 1e-3})
    train(alone)
    both = configure("both", train={"batch_size": 2, "steps": 3, "learning_rate": 1e-3})
    Path(tmp_path / "both.toml").write_text(to_toml(both))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "fera.cli", "train", str(tmp_path / "both.toml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, env=environment)
    assert json.loads((both.output_dir / "summary.json").read_text())["samples"] == 12
    assert log_of(both, "loss")[0] == pytest.approx(log_of(alone, "loss")[0], rel=1e-3)
    one, two = weights_of(alone), weights_of(both)
    flat = [torch.cat([held[key].flatten() for key in sorted(held) if "experts_B" in key]) for held in (one, two)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99
