"""What many small layers multiply with, formed at once: which layers, when, and what comes out."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from forming_cases import change_values, check, count_routed, generally, guided, make, routed, shape_of, weigh_some
from peft import get_peft_model
from tuner_cases import (
    CASES,
    UNET,
    config,
    fill,
    find_gate,
    predict,
)

import fera
from fera.tuner.fast import forming

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")
cases = pytest.mark.parametrize("case", CASES, ids=repr)


@pytest.fixture
def formed(monkeypatch):
    """How many layers each call has formed the weights of."""
    sizes = []
    form = forming._Group.form

    def note(group, row):
        weights = form(group, row)
        sizes.append(len(weights))
        return weights

    monkeypatch.setattr(forming._Group, "form", note)
    return sizes


@cases
def test_layers_are_formed_together_from_the_first_forward_on(formed, case):
    model = make(case)
    for seed in range(3):
        formed.clear()
        check(model, guided(case, seed))
        assert sum(formed) == count_routed(model) > len(formed) == len({shape_of(m) for m in routed(model)})
    assert not find_gate(model).shared


def test_no_more_bytes_at_once_than_allowed(formed, monkeypatch):
    model = make()
    weights = [layer.base_layer.weight for layer in routed(model)]
    monkeypatch.setattr(forming, "_MOST_BYTES", 2 * max(weight.numel() for weight in weights) * 4)
    for seed in range(3):
        formed.clear()
        check(model, guided(UNET, seed))
    assert sum(formed) == len(weights) and max(formed) <= 3 < len(formed)


@cases
def test_nothing_is_formed_where_gates_differ(formed, case):
    model = make(case)
    for seed in range(3):
        check(model, case.inputs(2, seed=seed))
    assert formed == []
    check(model, guided(case))
    assert sum(formed) == count_routed(model)


def test_nothing_is_formed_where_gradients_are_wanted(formed):
    model = make()
    for _ in range(3):
        predict(model, guided(UNET)).sum().backward()
    assert formed == []


def test_ranks_and_scales_of_their_own(formed):
    model = make(rank_pattern={"to_k": 3}, alpha_pattern={"to_v": 9})
    for seed in range(3):
        check(model, guided(UNET, seed))
    assert sum(formed) == 3 * count_routed(model)
    weigh_some(model)  # kinds are no more what they were
    for seed in range(4):
        formed.clear()
        check(model, guided(UNET, seed))
    assert sum(formed) == count_routed(model)


def test_a_layer_that_is_called_twice_and_one_that_is_called_no_more(formed):
    model, inputs = make(), guided(UNET)
    attention = next(module for module in model.modules() if type(module).__name__ == "Attention")
    check(model, inputs)
    first = attention.to_q
    attention.to_q, attention.to_k = attention.to_k, attention.to_k
    for _ in range(2):
        check(model, inputs)
    attention.to_q = first
    check(model, inputs)
    assert not find_gate(model).shared


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_looks_for_its_own_layers(formed, copied):
    model, inputs = make(), guided(UNET)
    check(model, inputs)
    other = copied(model)
    change_values(other)
    formed.clear()
    check(other, inputs)
    check(model, inputs)
    assert sum(formed) == 2 * count_routed(model)


@pytest.mark.parametrize("inputs", [guided(UNET), UNET.inputs(2)], ids=["one gate", "two gates"])
def test_all_forwards_draw_the_same_to_the_bit(inputs):
    model = make()
    with torch.no_grad():
        first = predict(model, inputs)
        assert torch.equal(predict(model, inputs), first)


def test_a_forward_that_fails_leaves_nothing_and_the_next_is_right(formed):
    model = make()
    broken = guided(UNET) | {"encoder_hidden_states": torch.zeros(2, 5, 33)}
    for _ in range(2):
        with torch.no_grad(), pytest.raises(RuntimeError):
            predict(model, broken)
        assert not find_gate(model).shared
    for seed in range(3):
        check(model, guided(UNET, seed))
    assert sum(formed) > count_routed(model)


def test_threads_that_share_a_denoiser():
    model = make()
    inputs = [guided(UNET, seed) for seed in range(8)]
    expected = [generally(model, one) for one in inputs]

    def draw(one):
        with torch.no_grad():
            return [predict(model, one) for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        for drawn, right in zip(pool.map(draw, inputs), expected, strict=True):
            for one in drawn:
                torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_no_worse_than_peft(formed, dtype):
    model = make(dtype=dtype)
    double = copy.deepcopy(model).double()
    mine, theirs = 0.0, 0.0
    for seed in range(12):
        inputs = guided(UNET, seed, dtype)
        with torch.no_grad():
            exact = predict(double, {name: value.double() for name, value in inputs.items()})
            mine += float((predict(model, inputs).double() - exact).square().sum())
        theirs += float((generally(model, inputs).double() - exact).square().sum())
    assert sum(formed) == 2 * 12 * count_routed(model)  # those of the reference too
    assert mine <= 1.1 * theirs


def test_in_a_peft_model(formed):
    model = fill(get_peft_model(UNET.model(), config())).eval()
    for seed in range(3):
        check(model, guided(UNET, seed))
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(predict(model, guided(UNET)), predict(UNET.model().eval(), guided(UNET)))
    assert sum(formed) == 3 * count_routed(model)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_gate_that_goes_lets_go_of_the_layers(wrapped):
    model = fill(get_peft_model(UNET.model(), config()) if wrapped else make()).eval()
    for _ in range(2):
        check(model, guided(UNET))
    gate = find_gate(model)
    assert gate.step_weights._groups
    if wrapped:
        model.unload()
    else:
        fera.unload(model)
    assert not gate.step_weights._groups


def test_layers_that_autocast_casts_form_their_own(formed):
    model = make()
    for _ in range(3):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            predict(model, guided(UNET))
    assert formed == []


def test_autocast_that_begins_within_a_forward(formed):
    model, inputs = make(), guided(UNET)
    attention = [module for module in model.modules() if type(module).__name__ == "Attention"][-1]
    attention.forward = torch.autocast("cpu", torch.bfloat16)(attention.forward)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, inputs), generally(model, inputs), rtol=0.02, atol=0.02)
    assert formed
