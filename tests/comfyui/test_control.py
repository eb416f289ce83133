"""What a person sets about a gate, and texts that they write in nodes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fera import FeraError
from fera.comfyui.control import GateControl, experts_of, weights_of

GATES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])


def test_nothing_set_changes_nothing():
    assert GateControl().applied(GATES) is GATES


def test_a_fixed_gate_is_that_of_all_samples():
    assert GateControl(fixed=(0.5, 0.0, 2.0)).applied(GATES).tolist() == [[0.5, 0.0, 2.0]] * 2


def test_muted_experts_do_not_act_and_the_others_stay():
    applied = GateControl(muted=frozenset({0, 2})).applied(GATES)
    torch.testing.assert_close(applied, torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.3, 0.0]]))


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=5), st.floats(0.2, 5))
def test_temperature_is_that_of_the_softmax(logits, temperature):
    logits = torch.tensor([logits])
    applied = GateControl(temperature=temperature).applied(torch.softmax(logits, dim=1))
    torch.testing.assert_close(applied, torch.softmax(logits / temperature, dim=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"start": 0.6, "end": 0.5}, "start and end must lie in 0 to 1"),
        ({"end": 1.5}, "start and end must lie in 0 to 1"),
        ({"fixed": (float("nan"), 1.0)}, "finite"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(FeraError, match=message):
        GateControl(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"fixed": (0.5, 0.5)}, "has 3 experts, and the fixed gate 2 weights"), ({"muted": {3}}, "there is no expert 4")],
)
def test_refuses_another_number_of_experts(settings, message):
    with pytest.raises(FeraError, match=message):
        GateControl(**settings).check(3, "style")


def test_texts():
    assert experts_of("1, 3") == {0, 2} and experts_of("") == frozenset()
    assert weights_of("0.2 0.3,0.5") == (0.2, 0.3, 0.5) and weights_of(" ") is None
    with pytest.raises(FeraError, match="numbers from 1 on"):
        experts_of("first")
    with pytest.raises(FeraError, match="one number an expert"):
        weights_of("a half")
