"""The course of the learning rate: what each schedule's settings do, and what becomes of it in a run that goes on."""

import math

import pytest
import torch
from listeners import train
from training_cases import log_of, run_config

from fera.training import OptimizationConfig
from fera.training.step.optimizers import build_lr_scheduler

RATE, STEPS = 0.01, 12


def course(**settings) -> list[float]:
    """Learning rates of all steps."""
    chosen = OptimizationConfig(learning_rate=RATE, steps=STEPS, **settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = build_lr_scheduler(chosen, optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_restarts_come_as_often_as_asked_for(cycles):
    rates = course(lr_scheduler="cosine_with_restarts", lr_num_cycles=cycles)
    expected = [RATE * 0.5 * (1 + math.cos(math.pi * (cycles * step / STEPS % 1))) for step in range(STEPS)]
    assert rates == pytest.approx(expected)
    assert sum(rate == RATE for rate in rates) == cycles


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_falls_by_its_power(power):
    rates = course(lr_scheduler="polynomial", lr_power=power, lr_warmup_steps=2)
    falling = [(RATE - 1e-7) * (1 - (step - 2) / (STEPS - 2)) ** power + 1e-7 for step in range(2, STEPS)]
    assert rates == pytest.approx([0, RATE / 2, *falling])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_num_cycles": 2, "lr_scheduler": "cosine"}, 'lr_num_cycles is set.*"cosine_with_restarts"'),
        ({"lr_power": 2.0, "lr_scheduler": "linear"}, 'lr_power is set.*"polynomial"'),
        ({"lr_warmup_steps": 2, "lr_scheduler": "constant"}, 'has no warm-up.*"constant_with_warmup"'),
        ({"learning_rate": 1e-8, "lr_scheduler": "polynomial"}, "learning_rate is 1e-08.*ends at 1e-07"),
        ({"lr_warmup_steps": 4, "steps": 4, "lr_scheduler": "polynomial"}, "no step to fall"),
    ],
)
def test_settings_that_a_schedule_does_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizationConfig(**settings)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", lambda step, steps: 0.5 * (1 + math.cos(math.pi * step / steps))),
        ("linear", lambda step, steps: 1 - step / steps),
    ],
)
def test_a_prolonged_run_follows_its_own_course(tiny_sd_dir, image_folder, tmp_path, capsys, schedule, expected):
    def configured(steps: int):
        settings = {"steps": steps, "lr_scheduler": schedule, "batch_size": 1}
        return run_config(tiny_sd_dir, image_folder, tmp_path / "run", train=settings)

    train(configured(3))
    capsys.readouterr()
    train(configured(6), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert log_of(configured(6), "lr") == pytest.approx(
        [RATE * expected(step, 3) for step in range(3)] + [RATE * expected(step, 6) for step in range(3, 6)], rel=1e-4
    )
    assert f"train.steps is 6, was 3: the learning rate follows the {schedule} schedule over 6 steps" in said
    assert "step 3 of 6" in said and "learning rate 0.005" in said and "has 0.005, it would have had 0" in said


@pytest.mark.parametrize("optimizer", ["adamw", "torch.optim.Adafactor", "torch.optim.SGD"])
def test_every_group_follows_an_allowed_course(tiny_sd_dir, image_folder, tmp_path, optimizer):
    """Without a changed rate, which alone used to be adopted; a router's rate is a tenth of the experts'."""

    def configured(**settings):
        settings = {"steps": 4, "batch_size": 1, "optimizer": optimizer, "checkpointing_steps": 2} | settings
        return run_config(tiny_sd_dir, image_folder, tmp_path / "run", train=settings)

    train(configured(steps=2, lr_scheduler="constant"))
    changed = configured(lr_scheduler="polynomial", lr_power=2.0)
    train(changed, resume=True, allow=["train.lr_scheduler", "train.lr_power"])
    falling = [(RATE - 1e-7) * (1 - step / 4) ** 2 + 1e-7 for step in (2, 3)]
    assert log_of(changed, "lr") == pytest.approx([RATE, RATE, *falling], rel=1e-5)
    assert log_of(changed, "router_lr") == pytest.approx([rate / 10 for rate in [RATE, RATE, *falling]], rel=1e-5)
