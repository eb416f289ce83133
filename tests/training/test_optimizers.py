"""Every optimizer: what it takes, what it refuses, and that a resumed run equals an uninterrupted one."""

import json
import sys

import pytest
import torch
from peft import get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import make_unet
from training_cases import run_config, trained_weights, trainers

from fera import FeraConfig, FeraError
from fera.preflight.costs import bytes_a_trained_parameter
from fera.training import OptimizationConfig, load_config, train
from fera.training.folder.run_folder import RunFolder
from fera.training.step.optimizers import build_optimizer, check_optimizer

# Settings of one run for each. The tiny adapter's tensors are below the size that is kept in 8 bits otherwise.
OPTIMIZERS = {
    "adamw": {},
    "adamw8bit": {"optimizer_args": {"min_8bit_size": 16}},
    "prodigy": {"learning_rate": 1.0, "optimizer_args": {"d0": 1e-3}},
    "adafactor": {"optimizer_args": {"weight_decay": 0.01, "d": 2.0}},
    "adamw_schedulefree": {"lr_scheduler": "constant"},
    "torch.optim.SGD": {"optimizer_args": {"momentum": 0.9, "nesterov": True}},
}
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "adamw_schedulefree": "schedulefree"}


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return request.param


@pytest.fixture(scope="module")
def workshop(tiny_sd_dir, tmp_path_factory):
    with trainers(tiny_sd_dir, tmp_path_factory.mktemp("optimizers")) as make:
        yield make


def saved_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same(first, second):
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[key], second[key]) for key in first)


def model():
    torch.manual_seed(0)
    return get_peft_model(make_unet(), FeraConfig(r=2, target_modules=["to_q", "to_v"]))


def gradients(adapted):
    adapted(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 3, 32))[0].square().mean().backward()
    return adapted


def test_resumed_run_equals_an_uninterrupted_one(name, workshop, tmp_path):
    """Neither saving a checkpoint nor measuring a loss leaves a trace in what trains."""
    settings = {"optimizer": name} | OPTIMIZERS[name]
    straight = workshop(tmp_path / "straight", **settings)
    for _ in range(4):
        straight.advance()
    expected = trained_weights(straight)

    stopped = workshop(tmp_path / "stopped", **settings)
    for _ in range(2):
        stopped.advance()
        stopped.validate(pictures=False, loss=True)
    stopped.save_checkpoint()
    halfway = trained_weights(stopped)
    stopped.advance()

    resumed = workshop(tmp_path / "stopped", **settings)
    resumed.restore(RunFolder(tmp_path / "stopped").latest_checkpoint(), [], [])
    assert_same(trained_weights(resumed), halfway)
    for _ in range(2):
        resumed.advance()
    assert_same(trained_weights(resumed), expected)
    assert not any(torch.equal(halfway[key], expected[key]) for key in expected)


def test_each_kind_has_its_rate(name):
    settings = {"learning_rate": 1e-3, "loraplus_lr_ratio": 4.0, "router_lr_ratio": 0.5} | OPTIMIZERS[name]
    if name == "prodigy":
        settings = OPTIMIZERS[name]  # one rate for all
    settings = OptimizationConfig(optimizer=name, **settings)
    rates = [group["lr"] for group in build_optimizer(settings, model()).param_groups]
    expected = [1.0, 1.0, 1.0] if name == "prodigy" else [1e-3, 4e-3, 5e-4]
    assert rates == pytest.approx(expected)


def test_adam_settings_and_arguments_reach_it(name):
    if name in ("adafactor", "torch.optim.SGD"):
        pytest.skip("has no such settings")
    settings = OptimizationConfig(
        optimizer=name, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, adam_weight_decay=0.03, **OPTIMIZERS[name]
    )
    for group in build_optimizer(settings, model()).param_groups:
        assert tuple(group["betas"])[:2] == (0.8, 0.95)
        assert (group["eps"], group["weight_decay"]) == (1e-6, 0.03)


def test_arguments_reach_a_class_by_its_path():
    settings = OptimizationConfig(optimizer="torch.optim.Adam", optimizer_args={"betas": [0.5, 0.6], "amsgrad": True})
    optimizer = build_optimizer(settings, model())
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[2]["betas"] == (0.5, 0.6) and optimizer.param_groups[2]["amsgrad"]


def test_fused_adamw_steps_as_the_plain_one():
    """AdamW is fused where it can be."""
    stepped = {}
    for fused in (None, False):
        torch.manual_seed(1)
        settings = OptimizationConfig(
            learning_rate=1e-2, optimizer_args=None if fused is None else {"fused": fused}, adam_weight_decay=0.1
        )
        adapted = model()
        optimizer = build_optimizer(settings, adapted)
        assert all(group["fused"] is (fused is None) for group in optimizer.param_groups)
        for _ in range(3):
            optimizer.zero_grad()
            gradients(adapted)
            optimizer.step()
        stepped[fused] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for one, two in zip(*stepped.values(), strict=True):
        # Rounding in a gradient near 0 becomes a part of a step of the learning rate's size.
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_fp16_leaves_skipped_steps_to_accelerate():
    optimizer = build_optimizer(OptimizationConfig(mixed_precision="fp16"), model())
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_eight_bits_are_eight_bits():
    pytest.importorskip("bitsandbytes")
    adapted = gradients(model())
    optimizer = build_optimizer(OptimizationConfig(optimizer="adamw8bit", **OPTIMIZERS["adamw8bit"]), adapted)
    optimizer.step()
    for parameter, state in optimizer.state.items():
        assert state["state1"].dtype == (torch.uint8 if parameter.numel() >= 16 else torch.float32)


def test_schedule_free_keeps_its_average(workshop, tmp_path):
    """Training is at y = (1 - beta) z + beta x; what is kept and measured is x (Defazio et al., arXiv 2405.15682)."""
    pytest.importorskip("schedulefree")
    trainer = workshop(tmp_path / "run", optimizer="adamw_schedulefree", adam_beta1=0.8)
    for _ in range(3):
        trainer.advance()
    state = trainer._optimizer.state
    averages = [(parameter.detach() - 0.2 * state[parameter]["z"]) / 0.8 for parameter in trainer._trained]
    trained = [parameter.detach().clone() for parameter in trainer._trained]
    with trainer._average.applied():
        for parameter, average, last in zip(trainer._trained, averages, trained, strict=True):
            torch.testing.assert_close(parameter.detach(), average, rtol=1e-5, atol=1e-6)
            assert (parameter - last).abs().max() > 1e-5
        kept = trained_weights(trainer)
    assert all(torch.equal(*pair) for pair in zip(trained, trainer._trained, strict=True))
    trainer.save_checkpoint()
    assert trainer.finish(1.0).average == "schedule_free"
    final = saved_weights(tmp_path / "run" / "adapter")
    assert_same(final, saved_weights(RunFolder(tmp_path / "run").latest_checkpoint() / "adapter"))
    assert sum(value.sum() for value in final.values()) == pytest.approx(float(sum(v.sum() for v in kept.values())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamw8bits"}, "'adamw8bits'.*adamw, adamw8bit, prodigy.*did you mean 'adamw8bit'"),
        ({"optimizer": "adafactor", "adam_beta1": 0.5}, "adam_beta1 does not apply to train.optimizer = 'adafactor'"),
        ({"optimizer": "torch.optim.AdamW", "adam_epsilon": 1e-6}, "adam_epsilon does not apply"),
        ({"optimizer": "prodigy"}, "Prodigy finds the rate itself.*train.learning_rate = 1.0"),
        ({"optimizer": "prodigy", "learning_rate": 1.0, "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio"),
        ({"optimizer": "prodigyopt.Prodigy", "learning_rate": 1.0, "router_lr_ratio": 0.0}, "router_lr_ratio"),
        ({"ema_decay": 0.5}, "train.use_ema is off"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValidationError, match=message):
        OptimizationConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_args": {"momentum": 0.9}}, "momentum is no argument of AdamW; it takes amsgrad, max"),
        ({"optimizer_args": {"lr": 0.9}}, "optimizer_args.lr: set train.learning_rate instead"),
        ({"optimizer_args": {"betas": [0.9, 0.9]}}, "set train.adam_beta1, train.adam_beta2"),
        ({"optimizer": "torch.optim.SGD", "optimizer_args": {"momentum": -1}}, "refuses.*Invalid momentum"),
        ({"optimizer": "torch.optim.LBFGS"}, "refuses its settings"),
        ({"optimizer": "torch.optim.Nothing"}, "torch.optim has no optimizer 'Nothing'"),
        ({"optimizer": "torch.nn.Linear"}, "torch.nn has no optimizer 'Linear'"),
        ({"optimizer": "no_such_package.Lion"}, "cannot be imported.*install what provides no_such_package"),
    ],
)
def test_what_cannot_be_built_is_said_early(settings, message):
    with pytest.raises(FeraError, match=message):
        check_optimizer(OptimizationConfig(**settings))


@pytest.mark.parametrize("name", PACKAGES)
def test_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    for module in [module for module in sys.modules if module.startswith(f"{PACKAGES[name]}.")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(FeraError, match=r"pip install 'fera\[optimizers\]'"):
        check_optimizer(OptimizationConfig(optimizer=name, learning_rate=1.0))


def test_schedule_free_takes_no_other_schedule_and_no_other_average():
    pytest.importorskip("schedulefree")
    with pytest.raises(FeraError, match="lr_scheduler is cosine.*constant"):
        check_optimizer(OptimizationConfig(optimizer="adamw_schedulefree", lr_scheduler="cosine"))
    with pytest.raises(FeraError, match="leave train.use_ema out"):
        check_optimizer(OptimizationConfig(optimizer="schedulefree.SGDScheduleFree", use_ema=True))


def test_prodigys_estimate_is_logged(workshop, tmp_path):
    pytest.importorskip("prodigyopt")
    trainer = workshop(tmp_path / "run", optimizer="prodigy", learning_rate=1.0, optimizer_args={"d0": 1e-3})
    trainer.advance()
    record = json.loads(trainer._reporter._log.read_text().splitlines()[-1])
    assert record["lr"] == 1 and record["d"] == pytest.approx(trainer._optimizer.param_groups[0]["d"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 16),
        ({"optimizer": "adamw8bit"}, 10),
        ({"optimizer": "prodigy", "learning_rate": 1.0}, 24),
        ({"use_ema": True}, 20),
    ],
)
def test_estimate_counts_what_the_optimizer_keeps(settings, expected):
    """In bytes a parameter: weight and gradient are 8."""
    assert bytes_a_trained_parameter(OptimizationConfig(**settings)) == expected


def test_a_whole_run(tiny_sd_dir, image_folder, tmp_path):
    """From the configuration on, and what cannot work is said before anything is loaded."""
    settings = {"optimizer": "torch.optim.SGD", "optimizer_args": {"momentum": 0.9}, "steps": 2}
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", train=settings)
    assert train(config).average is None
    assert load_config(tmp_path / "run" / "config.toml") == config
    settings["optimizer_args"] = {"momentun": 0.9}
    with pytest.raises(FeraError, match="momentun is no argument of SGD; it takes momentum, dampening"):
        train(run_config(tmp_path / "nothing", image_folder, tmp_path / "other", train=settings))
