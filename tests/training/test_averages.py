"""Averages of the weights: by hand, and over whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_cases import trained_weights, trainers

from fera.training import OptimizationConfig
from fera.training.folder.run_folder import RunFolder
from fera.training.step.averages import Ema, LastWeights, average_of


def walk(decay, values):
    """The average of one number that takes some values, after each of them."""
    parameter = nn.Parameter(torch.tensor([7.0], dtype=torch.float64))
    average = Ema([parameter], decay)
    averages = []
    for value in values:
        with torch.no_grad():
            parameter.fill_(value)
        average.update()
        with average.applied():
            averages.append(parameter.item())
        assert parameter.item() == value
    return averages


def test_constant_decay_by_hand():
    """Below 2 / 11 the rise of the decay at the start does not show, but for the first step, which copies."""
    assert walk(0.125, [1.0, 9.0, 1.0]) == pytest.approx([1.0, 1 * 0.125 + 9 * 0.875, 8.0 * 0.125 + 1 * 0.875])


def test_decay_rises_to_its_bound():
    values = [float(value) for value in torch.randn(60, generator=torch.Generator().manual_seed(0))]
    expected, by_hand = values[0], [values[0]]
    for step, value in enumerate(values[1:], start=2):
        decay = min(0.8, step / (step + 9))
        expected = decay * expected + (1 - decay) * value
        by_hand.append(expected)
    assert walk(0.8, values) == pytest.approx(by_hand, rel=1e-12)


def test_no_decay_is_the_last_weights():
    values = [float(value) for value in torch.randn(20, generator=torch.Generator().manual_seed(0))]
    assert walk(0.0, values) == pytest.approx(values, rel=1e-12)


def test_off_unless_asked_for():
    parameters = [nn.Parameter(torch.ones(1))]
    assert isinstance(average_of(OptimizationConfig(), torch.optim.AdamW(parameters), parameters), LastWeights)


def test_weights_come_back_after_an_error():
    parameter = nn.Parameter(torch.zeros(1))
    average = Ema([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(3.0)
    with pytest.raises(RuntimeError, match="drawing"), average.applied():
        assert parameter.item() == 0
        raise RuntimeError("drawing")
    assert parameter.item() == 3


@pytest.fixture(scope="module")
def workshop(tiny_sd_dir, tmp_path_factory):
    with trainers(tiny_sd_dir, tmp_path_factory.mktemp("averages")) as make:
        yield make


def saved(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_run_measures_and_keeps_the_average(workshop, tmp_path):
    plain = workshop(tmp_path / "plain")
    plain.validate(pictures=False, loss=True)
    steps = []
    for _ in range(3):
        plain.advance()
        steps.append(trained_weights(plain))
    plain.validate(pictures=False, loss=True)

    run = tmp_path / "ema"
    averaged = workshop(run, use_ema=True, ema_decay=0.15)
    averaged.validate(pictures=False, loss=True)
    for _ in range(3):
        averaged.advance()
    averaged.validate(pictures=False, loss=True)
    # Training itself does not know of it.
    for name, value in trained_weights(averaged).items():
        assert torch.equal(value, steps[-1][name])
    # What is measured and kept is the average, here of a decay below 2 / 11, which the rise at the start leaves alone.
    one, two, three = steps
    expected = {name: 0.15 * (0.15 * one[name] + 0.85 * two[name]) + 0.85 * three[name] for name in one}
    with averaged._average.applied():
        for name, value in trained_weights(averaged).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    before, after = averaged.progress.held_out.values(), plain.progress.held_out.values()
    assert list(before)[0] == list(after)[0] and list(before)[1] != list(after)[1]

    averaged.save_checkpoint()
    assert averaged.finish(1.0).average == "ema"
    assert json.loads((run / "summary.json").read_text())["average"] == "ema"
    total = float(sum(value.double().sum() for value in expected.values()))
    for folder in (run, RunFolder(run).latest_checkpoint()):
        assert float(sum(value.double().sum() for value in saved(folder).values())) == pytest.approx(total, abs=1e-4)


def test_resumed_average_equals_an_uninterrupted_one(workshop, tmp_path):
    settings = {"use_ema": True, "ema_decay": 0.5}
    straight = workshop(tmp_path / "straight", **settings)
    for _ in range(4):
        straight.advance()
    trained = trained_weights(straight)
    straight.finish(1.0)

    stopped = workshop(tmp_path / "stopped", **settings)
    for _ in range(2):
        stopped.advance()
        stopped.validate(pictures=False, loss=True)
    stopped.save_checkpoint()
    resumed = workshop(tmp_path / "stopped", **settings)
    checkpoint = RunFolder(tmp_path / "stopped").latest_checkpoint()
    state = torch.load(checkpoint / "state.pt", weights_only=True)["average"]
    assert any(not torch.equal(*pair) for pair in zip(state["weights"], state["ema"]["shadow_params"], strict=True))
    resumed.restore(checkpoint, [], [])
    for _ in range(2):
        resumed.advance()
    for name, value in trained_weights(resumed).items():
        assert torch.equal(value, trained[name])
    resumed.finish(1.0)
    one, two = saved(tmp_path / "straight"), saved(tmp_path / "stopped")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
