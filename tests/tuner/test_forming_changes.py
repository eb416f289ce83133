"""Weights formed together: what changes between two forwards, or within one, counts."""

import pytest
import torch
from forming_cases import change_values, check, generally, guided, make, routed, shape_of, weigh_some
from peft import LoraConfig, inject_adapter_in_model
from tuner_cases import UNET, config, fill, find_gate, predict

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")
both = pytest.mark.parametrize("inputs", [guided(UNET), UNET.inputs(2)], ids=["one gate", "two gates"])


def _put_other_weights(model):
    for layer in routed(model):
        layer.lora_A["default"].weight.data = layer.lora_A["default"].weight.flip(0)


def _change_base(model):
    routed(model)[0].base_layer.weight.data.mul_(2)


def _weigh(model):
    for layer in routed(model):
        layer.set_scale("default", 0.5)


def _disable_one(model):
    routed(model)[3].enable_adapters(False)


def _watch_one(model):
    routed(model)[3].base_layer.register_forward_hook(lambda module, args, output: output + 1)


def _halve_one(model):
    layer = routed(model)[3]
    layer.lora_A.half()
    layer.lora_B.half()


def _add_plain(model):
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["to_q"], init_lora_weights=False), model, "plain")
    for layer in routed(model):
        layer.set_adapter([name for name in ("default", "plain") if name in layer.lora_A])


def _another(model):
    fill(inject_adapter_in_model(config(r=3), model, "other"), seed=5, adapter="other")
    for module in [*routed(model), find_gate(model)]:
        module.set_adapter("other")


def _replace(model):
    for module in [*routed(model), find_gate(model)]:
        module.delete_adapter("default")
    fill(inject_adapter_in_model(config(r=3), model), seed=5)


@pytest.mark.parametrize(
    "change",
    [
        change_values,
        _put_other_weights,
        _change_base,
        _weigh,
        weigh_some,
        _disable_one,
        _watch_one,
        _halve_one,
        _add_plain,
        _another,
        _replace,
    ],
)
@both
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_what_changes_between_forwards_counts(change, inputs):
    model = make()
    for _ in range(2):
        check(model, inputs)
    before = generally(model, inputs)
    change(model)
    assert (generally(model, inputs) - before).abs().max() > 1e-4
    for _ in range(3):
        check(model, inputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.enable_adapters(False),
        lambda layer: layer.set_scale("default", 0.5),
        lambda layer: layer.merged_adapters.append("other"),
    ],
    ids=["disabled", "weighed", "merged"],
)
@both
def test_what_a_hook_switches_within_a_forward_counts(change, inputs):
    model = make()
    for _ in range(2):
        check(model, inputs)
    first = routed(model)[0]
    same = [layer for layer in routed(model) if shape_of(layer) == shape_of(first)]
    before = generally(model, inputs)
    first.register_forward_hook(lambda module, args, output: change(same[-1]))
    after = generally(model, inputs)
    assert (after - before).abs().max() > 1e-5
    same[-1].enable_adapters(True)
    same[-1].set_scale("default", 1.0)
    same[-1].merged_adapters.clear()
    with torch.no_grad():
        torch.testing.assert_close(predict(model, inputs), after, rtol=1e-4, atol=1e-5)
