"""The soft frequency router: the formula in float64, special cases, precision, errors."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fera import FeraError, SoftFrequencyRouter
from fera.method.router import gate_entropy


def shares(batch, bands, seed=0):
    return torch.rand(batch, bands, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


def plain_formula(router, indicator, temperature):
    w1, b1 = router.hidden.weight.double(), router.hidden.bias.double()
    w2, b2 = router.output.weight.double(), router.output.bias.double()
    logits = (indicator.double() @ w1.T + b1).clamp_min(0) @ w2.T + b2
    powers = (logits / temperature).exp()
    return powers / powers.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("bands", "experts", "features", "temperature"), [(3, 3, 64, 0.7), (2, 5, 8, 0.05), (6, 2, 1, 4.0)]
)
def test_equals_the_formula(bands, experts, features, temperature):
    torch.manual_seed(0)
    router = SoftFrequencyRouter(bands, experts, features, temperature)
    indicator = shares(7, bands)
    gate = router(indicator)
    assert gate.shape == (7, experts) and gate.dtype == torch.float32
    torch.testing.assert_close(gate.double(), plain_formula(router, indicator, temperature), rtol=1e-5, atol=1e-7)


def test_defaults_are_the_released_ones():
    router = SoftFrequencyRouter()
    assert router.hidden.weight.shape == (64, 3) and router.output.weight.shape == (3, 64)
    assert router.temperature == 0.7
    assert sorted(router.state_dict()) == ["hidden.bias", "hidden.weight", "output.bias", "output.weight"]


def test_one_expert_always_has_the_whole_gate():
    assert torch.equal(SoftFrequencyRouter(3, 1)(shares(4, 3)), torch.ones(4, 1))


def test_an_output_of_zeros_is_a_uniform_gate():
    router = SoftFrequencyRouter(3, 4)
    torch.nn.init.zeros_(router.output.weight)
    torch.nn.init.zeros_(router.output.bias)
    assert torch.equal(router(shares(5, 3)), torch.full((5, 4), 0.25))


def test_temperature_between_a_choice_and_a_mean():
    torch.manual_seed(0)
    routers = {tau: SoftFrequencyRouter(3, 3, temperature=tau) for tau in (1e-5, 0.7, 1e5)}
    for router in routers.values():
        router.load_state_dict(routers[0.7].state_dict())
    gates = {tau: router(shares(4, 3)) for tau, router in routers.items()}
    assert (gates[1e-5].max(dim=1).values > 0.999).all()
    torch.testing.assert_close(gates[1e5], torch.full((4, 3), 1 / 3), rtol=0, atol=1e-4)
    assert torch.equal(gates[0.7].argmax(dim=1), gates[1e-5].argmax(dim=1))


def test_extreme_logits_stay_finite():
    router = SoftFrequencyRouter(3, 3, temperature=1e-3)
    torch.nn.init.normal_(router.output.weight, std=1e4)
    gate = router(shares(4, 3))
    assert gate.isfinite().all()
    torch.testing.assert_close(gate.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    "cast",
    [
        lambda router: router.half(),
        lambda router: router.bfloat16(),
        lambda router: router.double(),
        lambda router: router.to(torch.bfloat16),
        lambda router: router.to("cpu", torch.float16),
        lambda router: torch.nn.Sequential(router).half()[0],
    ],
)
def test_casts_leave_it_in_float32_to_the_bit(cast):
    router = SoftFrequencyRouter(3, 3)
    before = copy.deepcopy(router.state_dict())
    router = cast(router)
    for name, tensor in router.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), name
    assert router(shares(2, 3).half()).dtype == torch.float32


def test_it_moves_with_its_model():
    router = SoftFrequencyRouter(3, 3).to("meta")
    assert all(parameter.is_meta for parameter in router.parameters())
    router = router.to_empty(device="cpu")
    assert all(parameter.device.type == "cpu" for parameter in router.parameters())


def test_float32_under_autocast():
    router, indicator = SoftFrequencyRouter(3, 3), shares(4, 3)
    plain = router(indicator)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(indicator), plain)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    router = SoftFrequencyRouter(3, 3)
    indicator = shares(4, 3).requires_grad_()
    router(indicator)[:, 0].sum().backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    assert indicator.grad.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(
    bands=st.integers(2, 6),
    experts=st.integers(1, 6),
    features=st.integers(1, 16),
    temperature=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_gates_are_weights_of_a_mean(bands, experts, features, temperature, seed):
    torch.manual_seed(seed)
    gate = SoftFrequencyRouter(bands, experts, features, temperature)(shares(3, bands, seed))
    assert gate.shape == (3, experts)
    assert (gate >= 0).all()
    torch.testing.assert_close(gate.sum(dim=1), torch.ones(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_bands": 0},
        {"num_bands": 3.0},
        {"num_experts": 0},
        {"num_experts": True},
        {"hidden_features": 0},
        {"hidden_features": -3},
        {"temperature": 0},
        {"temperature": -0.7},
        {"temperature": math.inf},
        {"temperature": math.nan},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(FeraError, match=rf"{name} must .* got {value!r}"):
        SoftFrequencyRouter(**wrong)


@given(
    entries=st.integers(1, 5),
    experts=st.integers(1, 6),
    temperature=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_a_router_starts_from_linear_logits(entries, experts, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = 5 * torch.randn(experts, entries, generator=generator, dtype=torch.float64)
    bias = 5 * torch.randn(experts, generator=generator, dtype=torch.float64)
    inputs = torch.randn(7, entries, generator=generator)
    router = SoftFrequencyRouter(entries, experts, 2 * entries + seed % 3, temperature)
    router.start_from(weight, bias)
    expected = torch.softmax(inputs.double() @ weight.T + bias, dim=1)
    torch.testing.assert_close(router(inputs).double(), expected, rtol=0, atol=1e-5)


def test_a_router_that_was_started_learns_with_all_its_units():
    torch.manual_seed(0)
    router = SoftFrequencyRouter(3, 3, 16)
    router.start_from(torch.eye(3), torch.zeros(3))
    router(shares(8, 3, 0))[:, 0].sum().backward()
    assert torch.count_nonzero(router.output.weight.grad.abs().sum(dim=0)) > 6


def test_a_narrow_router_cannot_be_started():
    with pytest.raises(FeraError, match="router_features must be at least 6 .* got 5"):
        SoftFrequencyRouter(3, 2, 5).start_from(torch.zeros(2, 3), torch.zeros(2))


def test_entropy_of_gates():
    gates = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(gate_entropy(gates), torch.tensor([0.0, 1.0, 0.5]))
    assert gate_entropy(torch.ones(2, 1)).tolist() == [1.0, 1.0]
