"""Learning rates of A, B and the router."""

import pytest
import torch
from peft import get_peft_model
from pydantic import ValidationError

from fera import FeraConfig, FeraError
from fera.training import OptimizationConfig
from fera.training.step.optimizers import build_optimizer


@pytest.fixture
def model(tiny_unet):
    torch.manual_seed(0)
    return get_peft_model(tiny_unet(), FeraConfig(r=2, target_modules=["to_q", "to_v", "conv1"]))


def rates(model, optimizer) -> dict[str, float]:
    by_parameter = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(by_parameter) == len(trained)
    return {name: by_parameter[id(parameter)] for name, parameter in trained}


@pytest.mark.parametrize("router", [None, 0.3])
def test_each_kind_has_its_rate(model, router):
    settings = OptimizationConfig(learning_rate=1e-4, loraplus_lr_ratio=16.0, router_lr_ratio=router)
    for name, rate in rates(model, build_optimizer(settings, model)).items():
        if "lora_A" in name:
            assert rate == 1e-4
        elif "lora_B" in name:
            assert rate == pytest.approx(1.6e-3)
        else:
            assert ".fera." in name and rate == pytest.approx(1e-4 * (router or 0.1))


def test_experts_have_one_rate_by_default(model):
    found = rates(model, build_optimizer(OptimizationConfig(learning_rate=1e-4), model))
    assert {rate for name, rate in found.items() if ".fera." not in name} == {1e-4}


def test_prodigy_has_one_rate_for_all(model):
    pytest.importorskip("prodigyopt")
    settings = OptimizationConfig(optimizer="prodigy", learning_rate=1.0)
    assert set(rates(model, build_optimizer(settings, model)).values()) == {1.0}


def test_first_step_of_b_is_longer_by_the_ratio(model):
    """Adam's first step is the learning rate, whatever the gradient."""
    settings = OptimizationConfig(learning_rate=1e-4, loraplus_lr_ratio=4.0)
    optimizer = build_optimizer(settings, model)
    model(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 3, 32))[0].square().mean().backward()
    optimizer.step()
    moved = [parameter.abs().max().item() for name, parameter in model.named_parameters() if "lora_B" in name]
    assert moved and all(step == pytest.approx(4e-4, rel=1e-2) for step in moved)


def test_ratio_without_b_is_refused(tiny_unet):
    unet = tiny_unet()  # trained as a whole: nothing in it is a B
    with pytest.raises(FeraError, match="train.loraplus_lr_ratio is 16.*no matrix B"):
        build_optimizer(OptimizationConfig(loraplus_lr_ratio=16.0), unet)


def test_ratio_below_one_is_refused():
    with pytest.raises(ValidationError, match="loraplus_lr_ratio"):
        OptimizationConfig(loraplus_lr_ratio=0.5)
