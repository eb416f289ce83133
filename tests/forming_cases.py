"""What tests of weights formed together share: models, calls, and what PEFT's own layers give."""

import pytest
import torch
from peft import inject_adapter_in_model
from peft.tuners.lora.layer import Linear as LoraLinear
from tuner_cases import UNET, config, fill, predict

from fera.tuner.fast import linear


def make(case=UNET, dtype=torch.float32, **settings):
    return fill(inject_adapter_in_model(config(**settings), case.model())).eval().to(dtype)


def guided(case, seed=0, dtype=torch.float32):
    """One latent twice, as guidance passes it."""
    one = case.inputs(1, seed=seed, dtype=dtype)
    return {
        name: torch.cat([value, value.flip(1) if name.startswith("encoder") else value]) for name, value in one.items()
    }


def generally(model, inputs):
    """What PEFT's forward gives."""
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear.RoutedLinear, "forward", LoraLinear.forward)
        return predict(model, inputs)


def check(model, inputs):
    """The layers of this tree give what PEFT's do."""
    expected = generally(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, inputs), expected, rtol=1e-4, atol=1e-5)


def routed(model):
    """Its layers that can be formed."""
    return [module for module in model.modules() if isinstance(module, linear.RoutedLinear)]


def count_routed(model):
    return len(routed(model))


def shape_of(layer):
    return layer.base_layer.weight.shape


def change_values(model):
    for layer in routed(model):
        layer.lora_B["default"].weight.data.copy_(layer.lora_B["default"].weight.flip(0))


def weigh_some(model):
    for layer in routed(model)[::2]:
        layer.set_scale("default", 0.5)
