"""Adapters' weights cast together under autocast: the same gradients, whatever happens between two forwards."""

import copy

import pytest
import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tuner_cases import CASES, UNET, adapter_gradients, config, fill, find_gate, predict

from fera.tuner.fast import casting, linear

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")
cases = pytest.mark.parametrize("case", CASES, ids=repr)


@pytest.fixture
def together(monkeypatch):
    """How many weights each call has cast."""
    counts = []
    cast = casting._together

    def note(weights, dtype):
        found = cast(weights, dtype)
        counts.append(len(found))
        return found

    monkeypatch.setattr(casting, "_together", note)
    return counts


def make(case=UNET, **settings):
    model = fill(get_peft_model(case.model(), config(**settings))).train()
    model.get_base_model().requires_grad_(False)
    model.set_adapter("default")
    return model


def gradients(model, inputs):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        predicted = predict(model, inputs)
    predicted.float().square().mean().backward()
    return adapter_gradients(model)


def check(model, inputs):
    """The gradients are those of weights that are cast one by one."""
    found = gradients(model, inputs)
    assert not find_gate(model).shared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(casting.StepCasts, "take", lambda self, weight, dtype, shared: weight.to(dtype))
        expected = gradients(model, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == expected[name].dtype == torch.float32
        # Where a weight lies in memory can change the order of sums.
        assert (gradient - expected[name]).norm() <= 0.01 * expected[name].norm() + 1e-9, name


def count_weights(model, adapter="default"):
    return sum(f".lora_A.{adapter}." in name or f".lora_B.{adapter}." in name for name, _ in model.named_parameters())


@cases
def test_weights_are_cast_together_once_they_are_known(together, case):
    model = make(case)
    for seed in range(3):
        check(model, case.inputs(2, seed=seed))
    assert together == [0, count_weights(model), count_weights(model)]


def test_after_a_step_of_the_optimizer(together):
    model = make()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1, fused=True)
    for seed in range(4):
        check(model, UNET.inputs(2, seed=seed))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    assert together[-1] == count_weights(model)


def test_gradients_of_several_forwards_add_up(together):
    model, inputs = make(), UNET.inputs(2)
    for _ in range(2):
        once = gradients(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        predict(model, inputs).float().square().mean().backward()
    for name, gradient in adapter_gradients(model).items():
        assert (gradient - 2 * once[name]).norm() <= 0.02 * once[name].norm() + 1e-9, name
    assert together == [0, count_weights(model), count_weights(model)]


def _put_other_weights(model):
    for module in model.modules():
        if isinstance(module, linear.RoutedLinear):
            module.lora_B["default"].weight = torch.nn.Parameter(module.lora_B["default"].weight.detach() * 2)


def _change_values(model):
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.data.mul_(2)


def _freeze(model, part):
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.requires_grad_(False)


def _freeze_some(model):
    _freeze(model, ".to_q.lora_A.")


def _disable_some(model):
    for name, module in model.named_modules():
        if name.endswith("to_q"):
            module.enable_adapters(False)
    _freeze(model, ".to_q.")


def _halve_some(model):
    for name, module in model.named_modules():
        if name.endswith("to_q"):
            module.lora_A.to(torch.bfloat16)
    _freeze(model, ".to_q.")


def _add_plain(model):
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["to_q"]), model.get_base_model(), "plain")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter("default")


@pytest.mark.parametrize(
    "change", [_put_other_weights, _change_values, _freeze_some, _disable_some, _halve_some, _add_plain]
)
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_what_changes_between_forwards_counts(change):
    model, inputs = make(), UNET.inputs(2)
    for _ in range(2):
        check(model, inputs)
    change(model)
    for _ in range(3):
        check(model, inputs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_that_run_again_cast_their_own(together, reentrant):
    model, inputs = make(), UNET.inputs(2)
    inputs["sample"].requires_grad_()
    base = model.get_base_model()
    if reentrant:
        base.enable_gradient_checkpointing(
            lambda block, *args: torch.utils.checkpoint.checkpoint(block.__call__, *args, use_reentrant=True)
        )
    else:
        base.enable_gradient_checkpointing()
    for _ in range(3):
        check(model, inputs)
    assert together == []


def test_nothing_is_cast_together_without_gradients_or_autocast(together):
    model, inputs = make(), UNET.inputs(2)
    for _ in range(3):
        predict(model, inputs).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            predict(model, inputs)
    assert together == []


def test_a_copy_learns_anew(together):
    model, inputs = make(), UNET.inputs(2)
    for _ in range(2):
        check(model, inputs)
    together.clear()
    other = copy.deepcopy(model)
    for _ in range(2):
        check(other, inputs)
    assert together == [0, count_weights(model)]


def test_an_adapter_that_goes_is_forgotten():
    model = inject_adapter_in_model(config(), UNET.model())
    cast_training_params(model, torch.float32)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            predict(model, UNET.inputs(2)).float().sum().backward()
    assert find_gate(model).step_casts._known
    find_gate(model).delete_adapter("default")
    assert not find_gate(model).step_casts._known
